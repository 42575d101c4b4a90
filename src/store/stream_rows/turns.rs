//! Turns: claimed with the next input, and finished.

use super::*;

pub(super) fn read_input(mut row: Row) -> Result<QueuedRow, StoreError> {
    let (id, kind) = (row.count()?, read_kind(&mut row)?);
    Ok(QueuedRow { id, kind, role: row.text_or_null()?, content: row.bytes()?.into(), at: row.time()? })
}

/// How many inputs wait.
pub(super) fn waiting(sql: &mut dyn Sql, stream: Uuid) -> Result<usize, StoreError> {
    let count = sql.one("SELECT count(*) FROM queue WHERE stream_id = ?1", args![stream])?.count()?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Takes the head of the queue, if there is one.
pub(super) fn take_input(sql: &mut dyn Sql, stream: Uuid) -> Result<Option<QueuedRow>, StoreError> {
    let head = sql.row(
        "SELECT id, kind, role, content, ts FROM queue WHERE stream_id = ?1 ORDER BY id LIMIT 1",
        args![stream],
    )?;
    let Some(head) = head.map(read_input).transpose()? else { return Ok(None) };
    sql.execute("DELETE FROM queue WHERE stream_id = ?1 AND id = ?2", args![stream, head.id])?;
    Ok(Some(head))
}

/// Claims a stream whose row is locked.
pub(super) fn claim_row(sql: &mut dyn Sql, locked: Locked, claim: &Claim) -> Result<Claimed, StoreError> {
    let Locked { mut row, now } = locked;
    if row.state.closed_pos.is_some() {
        return Ok(Claimed::Closed(row.change()));
    }
    let was = row.state.status;
    let run = Run { worker: claim.worker, lease: LeaseHash::of(&claim.lease), until: now + claim.lease_for };
    let waiting = waiting(sql, row.id)?;
    let turn = match row.state.claim(run, now, waiting) {
        Ok(claimed) => claimed.turn,
        Err(Refused::Held { worker, turn }) => return Ok(Claimed::Running { worker, turn }),
        Err(Refused::Lost { .. } | Refused::Closed) => return Ok(Claimed::Closed(row.change())),
    };
    let input = take_input(sql, row.id)?;
    (row.turn_begun_at, row.turn_folded_to) = (Some(now), 0);
    row.status_at = now;
    save(sql, &mut row, now, &was)?;
    Ok(Claimed::Turn(TurnClaimed {
        change: row.change(),
        name: row.name,
        turn,
        lease: claim.lease,
        input,
        again: false,
    }))
}

/// Remembers a claim under its key.
pub(super) fn remember_claim(
    sql: &mut dyn Sql,
    scope: Uuid,
    op: Op,
    claim: &Claim,
    claimed: &Claimed,
) -> Result<(), StoreError> {
    if let (Some(key), Claimed::Turn(turn)) = (&claim.key, claimed) {
        let answer = Answer::Claimed {
            stream: turn.change.stream,
            turn: turn.turn,
            masked: mask(claim.lease, key),
            input: turn.input.as_ref().map(InputAnswer::of),
        };
        remember(sql, scope, op, Some(key), &answer)?;
    }
    Ok(())
}

/// A claim's answer, given again.
pub(super) fn claimed_again(row: &StreamRow, key: &str, answer: Answer) -> Option<Claimed> {
    let Answer::Claimed { turn, masked, input, .. } = answer else { return None };
    Some(Claimed::Turn(TurnClaimed {
        change: row.change(),
        name: row.name.clone(),
        turn,
        lease: mask(masked, key),
        input: input.map(InputAnswer::input),
        again: true,
    }))
}

pub(super) fn claim_next_in(sql: &mut dyn Sql, wanted: &str, claim: &Claim) -> Result<Claimed, StoreError> {
    let key = claim.key.as_deref();
    if let (Some(answer), Some(key)) = (recall(sql, Uuid::nil(), Op::ClaimNext, key)?, key)
        && let Answer::Claimed { stream, .. } = answer
        && let Lookup::Here(locked) = look_up(sql, &Address::Id(stream))?
        && let Some(claimed) = claimed_again(&locked.row, key, answer)
    {
        return Ok(claimed);
    }
    // A row that another took while this one waited for it is skipped; then there may be others.
    for _ in 0..3 {
        let next = sql.row(
            "SELECT id FROM streams WHERE status = 'pending' AND closed_pos IS NULL AND deleted_at IS NULL \
             AND (expires_at IS NULL OR expires_at > towpath_now()) AND towpath_has(labels, ?1) \
             ORDER BY status_at, id LIMIT 1 /*skip*/",
            args![wanted],
        )?;
        let Some(mut next) = next else { continue };
        if let Lookup::Here(locked) = look_up(sql, &Address::Id(next.id()?))? {
            let claimed = claim_row(sql, locked, claim)?;
            remember_claim(sql, Uuid::nil(), Op::ClaimNext, claim, &claimed)?;
            return Ok(claimed);
        }
    }
    Ok(Claimed::Missing)
}

pub(super) fn finish_in(
    sql: &mut dyn Sql,
    at: &Address,
    fence: Fence,
    end: &End,
) -> Result<Finished, StoreError> {
    let Locked { mut row, now } = here!(sql, at, Finished);
    let was = row.state.status;
    let waiting = waiting(sql, row.id)?;
    let (turn, lease) = (fence.turn, fence.lease);
    let state = &mut row.state;
    let ended = match end {
        End::Done => state.finish(turn, lease, Outcome::Done, now, waiting),
        End::Failed(why) => state.finish(turn, lease, Outcome::Failed(why.clone()), now, waiting),
        End::Lost => state.abandon(turn, lease, now),
        End::Aborted => state.abort(turn, lease, now),
        End::HandedBack => match state.status.run().copied() {
            Some(run) if state.turn_no == turn && run.lease == lease => {
                state.hand_back(run.worker, now);
                Ok(())
            }
            _ => Err(Refused::Lost { turn }),
        },
    };
    if ended.is_err() {
        return Ok(Finished::TurnLost);
    }
    save(sql, &mut row, now, &was)?;
    Ok(Finished::Done(row.change()))
}
