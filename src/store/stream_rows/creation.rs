//! A stream begins: blank, or as a fork of another with its history.

use super::*;

/// What a bytes stream is when nobody says.
pub(super) const DEFAULT_TYPE: &str = "application/octet-stream";

/// True when the stream that is there is what was asked for.
pub(super) fn is_as_asked(row: &StreamRow, new: &NewStream) -> bool {
    let fork_agrees = new.fork.as_ref().is_none_or(|fork| {
        row.forked_from.is_some_and(|from| {
            let source = match &fork.source {
                Address::Id(id) => *id == from.source,
                // The name was resolved when the fork was made; its source may be gone by now.
                Address::Name(_) => true,
            };
            let pos = match fork.at {
                None => true,
                Some(ForkAt::Start) => from.pos == 0,
                Some(ForkAt::Pos { pos, .. }) => from.pos == pos,
            };
            source && pos && from.beyond == fork.beyond
        })
    });
    fork_agrees
        && new.content_type.as_ref().is_none_or(|asked| is_same_type(asked, &row.content_type))
        && new.labels.as_ref().is_none_or(|asked| *asked == row.labels)
        && new.expiry.is_none_or(|asked| asked == row.expiry)
        && new.on_lost.is_none_or(|asked| asked == row.state.on_lost)
        && new.closed.is_none_or(|asked| asked == row.state.closed_pos.is_some())
}

/// What a fork begins with.
pub(super) struct ForkPlan {
    pub(super) source: StreamRow,
    /// Rows up to here are copied whole.
    pub(super) pos: u64,
    /// The position the fork was asked at.
    pub(super) asked: u64,
    pub(super) beyond: u64,
    /// The beginning of the row after `pos`, if it is cut.
    pub(super) cut: Option<MessageRow>,
    /// The id of the last row copied.
    pub(super) last_msg: u64,
}

/// Where a fork leaves its source, or the answer for whoever asked.
pub(super) fn plan_fork(
    sql: &mut dyn Sql,
    fork: &NewFork,
    content_type: Option<&String>,
) -> Result<Result<ForkPlan, Created>, StoreError> {
    let source = match look_up(sql, &fork.source)? {
        Lookup::Here(locked) => locked.row,
        Lookup::Missing => return Ok(Err(Created::NoSource)),
        Lookup::Gone => return Ok(Err(Created::SourceGone)),
    };
    if content_type.is_some_and(|asked| !is_same_type(asked, &source.content_type)) {
        return Ok(Err(Created::OtherType(source.content_type)));
    }
    let asked = match fork.at {
        None => source.state.history_pos,
        Some(ForkAt::Start) => 0,
        Some(ForkAt::Pos { tag, pos, .. }) if tag != source.tag || pos > source.state.history_pos => {
            return Ok(Err(Created::BadForkOffset));
        }
        Some(ForkAt::Pos { generation, .. }) if generation != source.state.generation => {
            return Ok(Err(Created::ForkTrimmed));
        }
        Some(ForkAt::Pos { pos, .. }) if pos > 0 && pos < source.state.trimmed_pos => {
            return Ok(Err(Created::ForkTrimmed));
        }
        Some(ForkAt::Pos { pos, .. }) => pos,
    };
    let (mut pos, mut cut) = (asked, None);
    if fork.beyond > 0 {
        let mut after = next_rows(sql, source.id, asked, source.content_type.as_str(), fork.beyond)?;
        if after.first().is_some_and(|row| row.kind == Kind::Bytes) {
            let row = after.swap_remove(0);
            let Ok(length) = usize::try_from(fork.beyond) else { return Ok(Err(Created::BadForkOffset)) };
            match row.content.get(..length) {
                None => return Ok(Err(Created::BadForkOffset)),
                Some(_) if length == row.content.len() => pos = row.pos,
                Some(head) => cut = Some(MessageRow { content: head.into(), ..row }),
            }
        } else {
            match after.last() {
                Some(row) if after.len() as u64 == fork.beyond => pos = row.pos,
                _ => return Ok(Err(Created::BadForkOffset)),
            }
        }
    }
    let last_msg = sql
        .one(
            "SELECT coalesce(max(id), 0) FROM messages WHERE stream_id = ?1 AND pos <= ?2",
            args![source.id, pos],
        )?
        .count()?;
    Ok(Ok(ForkPlan { source, pos, asked, beyond: fork.beyond, cut, last_msg }))
}

/// Whether two content types are the same but for letter case and parameters (`; charset=utf-8`).
pub(super) fn is_same_type(one: &str, other: &str) -> bool {
    let essence = |text: &str| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    one == other || essence(one) == essence(other)
}

pub(super) fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

/// What a new stream begins as, before its first messages.
pub(super) fn blank(new: &NewStream, tag: [u8; 4], plan: Option<&ForkPlan>, now: Wall) -> StreamRow {
    let source = plan.map(|plan| &plan.source);
    let expiry = new.expiry.or(source.map(|source| source.expiry)).unwrap_or_default();
    let mut state = Stream { on_lost: new.on_lost.unwrap_or_default(), ..Stream::default() };
    if let Some(plan) = plan {
        let from = &plan.source.state;
        state.on_lost = new.on_lost.unwrap_or(from.on_lost);
        state.generation = from.generation;
        state.trimmed_pos = from.trimmed_pos.min(plan.pos);
        (state.pos, state.history_pos, state.last_msg) = (plan.pos, plan.pos, plan.last_msg);
        // Messages copied from the source name its turns: the fork's own must not use their numbers.
        state.turn_no = from.turn_no;
        state.turn_closed_at = (from.turn_no > 0).then_some(now);
    }
    StreamRow {
        id: new.id,
        name: new.name.clone(),
        content_type: new
            .content_type
            .clone()
            .or_else(|| source.map(|source| source.content_type.clone()))
            .unwrap_or_else(|| DEFAULT_TYPE.into()),
        labels: new.labels.clone().or_else(|| source.map(|source| source.labels.clone())).unwrap_or_default(),
        expiry,
        expires_at: match expiry {
            Expiry::Never => None,
            Expiry::Ttl(ttl) => Some(now + ttl),
            Expiry::At(at) => Some(at),
        },
        tag: source.map_or(tag, |source| source.tag),
        state,
        turn_begun_at: None,
        turn_folded_to: 0,
        stream_seq: None,
        forked_from: plan.map(|plan| ForkedFrom {
            source: plan.source.id,
            pos: plan.asked,
            beyond: plan.beyond,
        }),
        forks: 0,
        keep: new.keep,
        bytes: 0,
        oldest_at: None,
        last_input: 0,
        deleted: false,
        created_at: now,
        updated_at: now,
        status_at: now,
    }
}

/// Inserts the parts of a row that never change. False when the name is taken.
pub(super) fn insert_stream(sql: &mut dyn Sql, row: &StreamRow) -> Result<bool, StoreError> {
    let ttl = match row.expiry {
        Expiry::Ttl(ttl) => Some(ttl.as_secs()),
        Expiry::Never | Expiry::At(_) => None,
    };
    let from = row.forked_from;
    let inserted = sql.execute(
        "INSERT INTO streams (id, name, content_type, labels, ttl_s, expires_at, tag, on_lost, status, \
         forked_from, fork_pos, fork_sub, keep_age_s, keep_bytes, created_at, updated_at, status_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'idle', ?9, ?10, ?11, ?12, ?13, ?14, ?14, ?14) \
         ON CONFLICT (name) DO NOTHING",
        args![
            row.id,
            row.name.as_str(),
            row.content_type.as_str(),
            &*labels_text(&row.labels),
            ttl,
            row.expires_at,
            &row.tag[..],
            row.state.on_lost.name(),
            from.map(|from| from.source),
            from.map_or(0, |from| from.pos),
            from.map_or(0, |from| from.beyond),
            row.keep.age.map(|age| age.as_secs()),
            row.keep.bytes,
            row.created_at,
        ],
    )?;
    Ok(inserted == 1)
}

/// Copies the source's history into a fork.
pub(super) fn copy_history(
    sql: &mut dyn Sql,
    row: &mut StreamRow,
    plan: &ForkPlan,
    now: Wall,
) -> Result<(), StoreError> {
    sql.execute(
        "INSERT INTO messages (stream_id, id, pos, gen, kind, role, content, removed, turn_no, folded_to, ts) \
         SELECT ?1, id, pos, gen, kind, role, content, removed, turn_no, folded_to, ts FROM messages \
         WHERE stream_id = ?2 AND pos <= ?3",
        args![row.id, plan.source.id, plan.pos],
    )?;
    let mut sums = sql.one(
        "SELECT CAST(coalesce(sum(length(content)), 0) AS BIGINT), min(ts) FROM messages WHERE stream_id = ?1",
        args![row.id],
    )?;
    (row.bytes, row.oldest_at) = (sums.count()?, sums.time_or_null()?);
    if let Some(head) = &plan.cut {
        let place = row.state.append().expect("a new stream is open");
        let draft = Draft { kind: head.kind, role: head.role.clone(), content: head.content.clone() };
        insert_message(sql, row, place, &draft, None, now)?;
    }
    sql.execute("UPDATE streams SET fork_count = fork_count + 1 WHERE id = ?1", args![plan.source.id])?;
    Ok(())
}
