use super::*;
use crate::rt::Rt;

#[test]
fn a_data_line_keeps_the_space_it_begins_with_and_no_line_end_begins_a_field() {
    for (mode, body, said) in [
        (Mode::Text, &b"one"[..], "event: data\ndata:one\n\n"),
        (Mode::Text, b" one", "event: data\ndata:  one\n\n"),
        (
            Mode::Text,
            b"a\r\n\r\nevent: control\rdata: x",
            "event: data\ndata:a\ndata:\ndata:event: control\ndata:data: x\n\n",
        ),
        (Mode::Bytes, b"Hello", "event: data\ndata:SGVsbG8=\n\n"),
        (Mode::Json, b"[1,\n2]", "event: data\ndata:[1,\ndata:2]\n\n"),
    ] {
        let mut out = Vec::new();
        push_data(&mut out, mode, body);
        assert_eq!(String::from_utf8(out).unwrap(), said);
    }
}

#[test]
fn a_content_type_says_how_its_messages_are_said() {
    for (content_type, mode) in [
        ("application/json", Mode::Json),
        ("Application/JSON; charset=utf-8", Mode::Json),
        ("text/plain", Mode::Text),
        ("TEXT/markdown; charset=utf-8", Mode::Text),
        ("application/octet-stream", Mode::Bytes),
        ("application/ld+json", Mode::Bytes),
        ("", Mode::Bytes),
    ] {
        assert_eq!(Mode::of(content_type), mode, "{content_type}");
    }
}

#[test]
fn a_cursor_is_greater_than_the_one_a_reader_came_with() {
    let (cursors, mut rand) = (Cursors::default(), Rt::real().rand("cursors"));
    let wall = Wall((CURSOR_EPOCH_MS + 7 * CURSOR_STEP_MS + 1) * 1_000);
    assert_eq!(cursors.now(wall), 7);
    assert_eq!(cursors.after(wall, None, &mut rand), 7);
    assert_eq!(cursors.after(wall, Some(6), &mut rand), 7);
    let moved = cursors.after(wall, Some(7), &mut rand);
    assert!((8..=7 + CURSOR_JUMP_MAX).contains(&moved), "{moved}");
    assert_eq!(cursors.now(wall), 7, "one answer moves nobody else");
    cursors.pass(wall, Some(7));
    assert_eq!(cursors.now(wall), 8, "a reader that stays is never told what it came with");
    cursors.pass(wall, Some(u64::MAX));
    assert_eq!(cursors.now(wall), 8, "what was never ours moves nobody");
}
