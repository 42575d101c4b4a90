use super::*;

fn item(n: u64) -> Item {
    sized(n, 40)
}

fn sized(n: u64, bytes: usize) -> Item {
    let mut payload = format!("record {n} ").into_bytes();
    payload.resize(bytes.max(payload.len()), b'.');
    Item { key: u128::from(n).to_be_bytes(), payload }
}

const NOW: Wall = Wall(1_790_000_000_000_000);
/// Tests must run on nearly full disks too.
const LIMITS: Limits = Limits { max_bytes: 1 << 30, min_free: 0, when_full: WhenFull::Refuse };

fn open(dir: &Path) -> File {
    let (file, found) = File::open(dir, LIMITS, NOW).unwrap();
    assert_eq!(found, Found::Whole);
    file
}

fn append(file: &mut File, numbers: std::ops::Range<u64>) {
    let items: Vec<Item> = numbers.map(item).collect();
    assert_eq!(file.append(&items, NOW).unwrap().new, items.len());
}

/// The payloads' numbers, read in pages of three.
fn content(file: &mut File) -> Vec<Item> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = file.page(after, 3, usize::MAX).unwrap();
        let Some(last) = page.last() else { return all };
        after = last.number;
        all.extend(page.into_iter().map(|kept| kept.item));
    }
}

fn items(numbers: std::ops::Range<u64>) -> Vec<Item> {
    numbers.map(item).collect()
}

#[test]
fn what_was_appended_is_there_after_reopening_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..8);
    append(&mut file, 8..10);
    drop(file);
    let mut file = open(dir.path());
    assert_eq!(content(&mut file), items(1..10));
    let status = file.status().unwrap();
    assert_eq!((status.records, status.oldest_at, status.lost), (9, Some(NOW), 0));
}

#[test]
fn a_record_that_comes_again_is_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..4);
    let done = file.append(&items(2..6), NOW).unwrap();
    assert_eq!(done, Appended { new: 2, known: 2, evicted: 0 });
    assert_eq!(content(&mut file), items(1..6));
}

#[test]
fn what_was_forgotten_is_gone_and_the_rest_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..10);
    assert_eq!(file.forget(4).unwrap(), 4);
    assert_eq!(file.forget(4).unwrap(), 0, "an answer that comes twice");
    drop(file);
    let mut file = open(dir.path());
    assert_eq!(content(&mut file), items(5..10));
    assert_eq!(file.forget(u64::MAX >> 1).unwrap(), 5);
    assert_eq!(file.status().unwrap(), Status::default());
    append(&mut file, 20..21);
    assert_eq!(file.page(0, 1, 1).unwrap()[0].number, 10, "numbers are never used again");
}

#[test]
fn a_page_ends_at_its_bytes_and_never_empty() {
    let mut file = File::memory(LIMITS).unwrap();
    append(&mut file, 1..10);
    assert_eq!(file.page(0, 100, 100).unwrap().len(), 2);
    assert_eq!(file.page(0, 100, 1).unwrap().len(), 1);
}

#[test]
fn a_full_spool_refuses_and_keeps_what_it_has() {
    let limits = Limits { max_bytes: 350, ..LIMITS };
    let mut file = File::memory(limits).unwrap();
    append(&mut file, 1..4);
    let refused = file.append(&items(4..5), NOW).unwrap_err();
    assert_eq!(refused, SpoolError::Full { bytes: 312, max_bytes: 350 });
    assert_eq!(content(&mut file), items(1..4));
    file.forget(1).unwrap();
    append(&mut file, 4..5);
}

#[test]
fn where_the_operator_chose_so_the_oldest_make_room_and_are_counted() {
    let limits = Limits { max_bytes: 350, when_full: WhenFull::OldestOut, ..LIMITS };
    let mut file = File::memory(limits).unwrap();
    append(&mut file, 1..4);
    let done = file.append(&items(4..6), NOW).unwrap();
    assert_eq!(done, Appended { new: 2, known: 0, evicted: 2 });
    assert_eq!(content(&mut file), items(3..6));
    let too_large = file.append(&[sized(9, 1_000)], NOW).unwrap_err();
    assert!(matches!(too_large, SpoolError::Full { .. }), "nothing is thrown out for what cannot fit");
    assert_eq!(content(&mut file), items(3..6));
}

#[test]
fn a_disk_that_is_nearly_full_is_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = File::open(dir.path(), Limits { min_free: u64::MAX, ..LIMITS }, NOW).unwrap();
    assert!(matches!(file.append(&items(1..2), NOW), Err(SpoolError::NoSpace { .. })));
}

#[test]
fn the_file_is_readable_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    append(&mut open(dir.path()), 1..2);
    let mode = std::fs::metadata(dir.path().join("spool.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_newer_layout_is_refused_with_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join("spool.db")).unwrap();
    db.execute_batch("CREATE TABLE other(x); PRAGMA user_version = 2").unwrap();
    drop(db);
    let error = File::open(dir.path(), LIMITS, NOW).unwrap_err().to_string();
    assert!(error.contains("its layout is 2 and this towpath knows 1"), "{error}");
}

#[test]
fn looking_changes_nothing_and_does_not_disturb_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..4);
    let mut looking = File::look(dir.path()).unwrap();
    assert_eq!(looking.verify().unwrap(), None);
    assert_eq!(content(&mut looking), items(1..4));
    append(&mut file, 4..5);
    assert!(looking.append(&items(5..6), NOW).is_err());
}

/// The bytes of a spool of some records, large ones among them, as a crash leaves them: part in the
/// file, part in its log.
fn crashed(dir: &Path) -> (Vec<u8>, Vec<u8>, Vec<Item>) {
    let mut file = open(dir);
    let kept: Vec<Item> = (1..60).map(|n| if n % 20 == 0 { sized(n, 9_000) } else { item(n) }).collect();
    file.append(&kept[..40], NOW).unwrap();
    file.forget(3).unwrap();
    file.with(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))).unwrap();
    for item in &kept[40..] {
        file.append(std::slice::from_ref(item), NOW).unwrap();
    }
    let [main, log, _] = beside(&dir.join("spool.db"));
    (std::fs::read(main).unwrap(), std::fs::read(log).unwrap(), kept[3..].to_vec())
}

/// Opens a spool of these bytes and says what was found and what is in it.
fn recover(main: &[u8], log: &[u8]) -> (Found, Vec<Item>) {
    let dir = tempfile::tempdir().unwrap();
    let [main_path, log_path, _] = beside(&dir.path().join("spool.db"));
    std::fs::write(main_path, main).unwrap();
    std::fs::write(log_path, log).unwrap();
    let (mut file, found) = File::open(dir.path(), LIMITS, NOW).unwrap();
    if let Found::Damaged(report) = &found {
        let aside = report.set_aside.as_ref().unwrap();
        assert!(aside.exists(), "the damaged file is kept");
        assert!(aside.to_string_lossy().contains("spool.db.damaged-1790000000000"));
    }
    (found, content(&mut file))
}

#[test]
fn a_crash_loses_nothing_and_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (main, log, kept) = crashed(dir.path());
    assert!(log.len() > 10_000);
    assert_eq!(recover(&main, &log), (Found::Whole, kept));
}

#[test]
fn a_commit_cut_short_by_a_crash_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (main, log, kept) = crashed(dir.path());
    for cut in [1, 100, 4_120, 4_121, 9_000] {
        let (found, content) = recover(&main, &log[..log.len() - cut]);
        assert_eq!(found, Found::Whole, "{cut} bytes short");
        assert!(kept.starts_with(&content));
    }
}

#[test]
fn every_flipped_bit_is_harmless_or_reported_and_costs_at_most_its_own_record() {
    let dir = tempfile::tempdir().unwrap();
    let (main, log, kept) = crashed(dir.path());
    flip(&main, &log, &kept, 30_011, 499);
}

/// A spool of 64 KiB as a stop leaves it: no log, nothing in it was sent.
#[test]
fn every_flipped_bit_of_a_spool_of_64_kib_is_harmless_or_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..400);
    drop(file);
    let main = std::fs::read(dir.path().join("spool.db")).unwrap();
    assert!((60_000..70_000).contains(&main.len()), "{} bytes", main.len());
    flip(&main, &[], &items(1..400), 4_001, 37);
}

/// Flips one bit after another, `stride` apart (prime, so that all parts of the file are visited); with
/// SLOW=1 `finely` apart.
fn flip(main: &[u8], log: &[u8], kept: &[Item], stride: usize, finely: usize) {
    let bits = (main.len() + log.len()) * 8;
    let stride = if std::env::var_os("SLOW").is_some() { finely } else { stride };
    let (mut harmless, mut reported) = (0, 0);
    for bit in (0..bits).step_by(stride) {
        let (mut main, mut log) = (main.to_vec(), log.to_vec());
        let byte = bit / 8;
        let flipped = if byte < main.len() { &mut main[byte] } else { &mut log[byte - main.len()] };
        *flipped ^= 1 << (bit % 8);
        let (found, content) = recover(&main, &log);
        match found {
            Found::Whole => {
                assert_eq!(content, kept, "bit {bit}: something is gone and nobody said so");
                harmless += 1;
            }
            Found::Damaged(report) => {
                let missing = kept.iter().filter(|item| !content.contains(item)).count();
                assert!(missing <= 1, "bit {bit}: {missing} are gone: {report}");
                assert!(
                    missing == 0 || report.lost() >= 1 || report.end_unknown,
                    "bit {bit}: the loss is not in the report: {report}"
                );
                reported += 1;
            }
        }
    }
    assert!(harmless > 0 && reported > 0, "{harmless} harmless, {reported} reported");
}

#[test]
fn a_file_that_cannot_be_replaced_stays_as_it_is_and_is_replaced_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..30);
    file.forget(3).unwrap();
    // In the way of the new file.
    let way = dir.path().join("spool.db.new");
    std::fs::create_dir(&way).unwrap();
    let damage = || Trouble::Damage(vec!["a sync failed".to_owned()]);
    let mut failed = false;
    let refused =
        file.on_a_sound_file(|_| if std::mem::replace(&mut failed, true) { Ok(()) } else { Err(damage()) });
    assert!(matches!(refused, Err(SpoolError::Broken { .. })), "{refused:?}");
    assert!(file.append(&items(30..31), NOW).is_err(), "never again to a file whose sync failed");
    assert!(file.page(0, 10, usize::MAX).is_err());
    assert!(dir.path().join("spool.db").exists());
    std::fs::remove_dir(&way).unwrap();
    append(&mut file, 30..31);
    assert_eq!(content(&mut file), items(4..31));
    assert_eq!(file.status().unwrap().lost, 0);
    let aside = dir.path().join("spool.db.damaged-1790000000000");
    assert!(aside.exists() && !way.exists());
    drop(file);
    assert_eq!(content(&mut open(dir.path())), items(4..31));
}

#[test]
fn a_swap_that_was_interrupted_is_ended_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let [main, log, _] = beside(&dir.path().join("spool.db"));
    let new = dir.path().join("spool.db.new");
    let mut file = open(dir.path());
    append(&mut file, 1..9);
    drop(file);
    // The power went before the old file was set aside: what is beside it is of no use.
    std::fs::write(&new, "half of it").unwrap();
    assert_eq!(content(&mut open(dir.path())), items(1..9));
    assert!(!new.exists());
    // It went after that, and the old log was still there.
    std::fs::rename(&main, &new).unwrap();
    std::fs::write(&log, "the log of the file that is gone").unwrap();
    assert_eq!(content(&mut open(dir.path())), items(1..9));
    assert!(!new.exists());
}

#[test]
fn a_file_that_is_no_database_is_set_aside_and_the_spool_works() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("spool.db"), "this is not a database, not at all").unwrap();
    let (mut file, found) = File::open(dir.path(), LIMITS, NOW).unwrap();
    assert!(matches!(found, Found::Damaged(_)));
    append(&mut file, 1..3);
    assert_eq!(content(&mut file), items(1..3));
}

#[test]
fn a_zeroed_page_in_the_middle_is_reported_by_range() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = open(dir.path());
    append(&mut file, 1..400);
    file.with(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))).unwrap();
    drop(file);
    let path = dir.path().join("spool.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"record 200 ";
    let place = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let page = place / 4_096 * 4_096;
    bytes[page..page + 4_096].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let (mut file, found) = File::open(dir.path(), LIMITS, NOW).unwrap();
    let Found::Damaged(report) = found else { panic!("damage must be seen") };
    assert_eq!(report.missing.len(), 1, "{report}");
    assert!(report.missing[0].contains(&200), "{report}");
    assert_eq!(report.salvaged + report.lost(), 399);
    assert_eq!(file.status().unwrap().lost, report.lost());
    drop(file);
    let mut file = open(dir.path());
    assert_eq!(file.status().unwrap().lost, report.lost(), "the loss is remembered");
}
