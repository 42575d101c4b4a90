//! Messages that are written by whoever may: in the order of a producer, once for a key; and rewritten.

use super::*;

/// Ends what a producer's numbers say, before anything is appended.
pub(super) enum Sequence {
    /// Not from a producer, or the next of its numbers.
    Next,
    Refused(Appended),
    /// Only worth telling once it is known that the stream is open.
    Gap(u64),
}

pub(super) fn check_producer(
    sql: &mut dyn Sql,
    row: &StreamRow,
    producer: &Producer,
) -> Result<Sequence, StoreError> {
    let known = sql.row(
        "SELECT epoch, seq FROM producers WHERE stream_id = ?1 AND producer_id = ?2",
        args![row.id, producer.id.as_str()],
    )?;
    let Some(mut known) = known else {
        return Ok(if producer.seq == 0 { Sequence::Next } else { Sequence::Gap(0) });
    };
    let (epoch, seq) = (known.count()?, known.count()?);
    Ok(if producer.epoch < epoch {
        Sequence::Refused(Appended::StaleEpoch(epoch))
    } else if producer.epoch > epoch {
        if producer.seq == 0 { Sequence::Next } else { Sequence::Refused(Appended::EpochNotAtZero) }
    } else if producer.seq <= seq {
        Sequence::Refused(Appended::Duplicate { change: row.change(), seq })
    } else if producer.seq > seq + 1 {
        Sequence::Gap(seq + 1)
    } else {
        Sequence::Next
    })
}

pub(super) fn append_in(sql: &mut dyn Sql, at: &Address, append: &Append) -> Result<Appended, StoreError> {
    let Locked { mut row, now } = here!(sql, at, Appended);
    let key = append.key.as_deref();
    if let Some(Answer::Appended { first, last, pos, generation }) = recall(sql, row.id, Op::Append, key)? {
        return Ok(Appended::Done { change: row.change(), first, last, pos, generation, again: true });
    }
    let sequence = match &append.producer {
        Some(producer) => check_producer(sql, &row, producer)?,
        None => Sequence::Next,
    };
    if let Sequence::Refused(outcome) = sequence {
        return Ok(outcome);
    }
    if row.state.closed_pos.is_some() {
        // Closing what is closed is no news, unless a producer claims to have done it.
        let close_only = append.close && append.messages.is_empty() && append.producer.is_none();
        return Ok(match close_only {
            true => Appended::Done {
                change: row.change(),
                first: 0,
                last: 0,
                pos: row.state.history_pos,
                generation: row.state.generation,
                again: true,
            },
            false => Appended::Closed(row.change()),
        });
    }
    if append.content_type.as_ref().is_some_and(|given| !is_same_type(given, &row.content_type)) {
        return Ok(Appended::OtherType(row.content_type));
    }
    if let Sequence::Gap(expected) = sequence {
        return Ok(Appended::Gap { expected });
    }
    if let (Some(given), Some(last)) = (&append.stream_seq, &row.stream_seq)
        && given <= last
    {
        return Ok(Appended::SeqRegressed(last.clone()));
    }

    let was = row.state.status;
    let (mut first, mut last, mut pos) = (0, 0, row.state.history_pos);
    for draft in &append.messages {
        let place = row.state.append().expect("an open stream takes messages");
        insert_message(sql, &mut row, place, draft, None, now)?;
        first = if first == 0 { place.id } else { first };
        (last, pos) = (place.id, place.pos);
    }
    if append.close {
        row.state.close();
    }
    if append.stream_seq.is_some() {
        row.stream_seq.clone_from(&append.stream_seq);
    }
    if let Some(producer) = &append.producer {
        sql.execute(
            "INSERT INTO producers (stream_id, producer_id, epoch, seq, pos, used_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (stream_id, producer_id) DO UPDATE SET \
             epoch = excluded.epoch, seq = excluded.seq, pos = excluded.pos, used_at = excluded.used_at",
            args![row.id, producer.id.as_str(), producer.epoch, producer.seq, row.state.pos, now],
        )?;
    }
    match (append.close, &append.stream_seq, row.expiry) {
        (false, None, Expiry::Never | Expiry::At(_)) => save_appended(sql, &mut row, now)?,
        _ => save(sql, &mut row, now, &was)?,
    }
    let generation = row.state.generation;
    remember(sql, row.id, Op::Append, key, &Answer::Appended { first, last, pos, generation })?;
    Ok(Appended::Done { change: row.change(), first, last, pos, generation, again: false })
}

/// Replaces or removes a message that is there.
pub(super) fn rewrite_in(
    sql: &mut dyn Sql,
    at: &Address,
    message: u64,
    draft: Option<&Draft>,
) -> Result<Edited, StoreError> {
    let Locked { mut row, now } = here!(sql, at, Edited);
    let Some(found) = message_of(sql, row.id, message)? else { return Ok(Edited::NoMessage) };
    row.bytes = row.bytes.saturating_sub(found.content.len() as u64);
    let was = row.state.status;
    row.state.rewrite();
    let empty: &[u8] = &[];
    let content = draft.map_or(empty, |draft| &*draft.content);
    row.bytes += content.len() as u64;
    sql.execute(
        "UPDATE messages SET gen = ?3, kind = coalesce(?4, kind), role = coalesce(?5, role), content = ?6, \
         removed = ?7 WHERE stream_id = ?1 AND pos = ?2",
        args![
            row.id,
            found.pos,
            row.state.generation,
            draft.map(|draft| kind_number(draft.kind)),
            draft.and_then(|draft| draft.role.as_deref()),
            content,
            i64::from(draft.is_none()),
        ],
    )?;
    save(sql, &mut row, now, &was)?;
    Ok(Edited::Done(row.change()))
}
