//! `towpath config …` and how settings are refused.

use crate::process::{run, told, towpath};

#[test]
fn a_good_file_is_ok_and_a_bad_one_is_78_with_its_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let good = folder.path().join("good.toml");
    let bad = folder.path().join("bad.toml");
    std::fs::write(&good, "[server]\nlisten = \"127.0.0.1:9\"\n").expect("written");
    std::fs::write(&bad, "[server]\nlisten = \"127.0.0.1:9\"\nio_thread = 2\n").expect("written");
    let check = |file: &std::path::Path| told(&run(&["config", "check", file.to_str().expect("UTF-8")]));
    assert_eq!(check(&good), (0, "ok\n".to_owned()));
    let (exit, text) = check(&bad);
    assert_eq!(exit, 78, "{text}");
    assert!(text.contains("bad.toml:3:1: unknown key `server.io_thread`; did you mean `server.io_threads`?"));
}

#[test]
fn a_file_that_is_not_there_is_a_configuration_error() {
    let (exit, text) = told(&run(&["config", "check", "/nowhere/towpath.toml"]));
    assert_eq!(exit, 78);
    assert!(text.contains("/nowhere/towpath.toml: No such file"), "{text}");
}

#[test]
fn the_file_that_init_prints_is_accepted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("towpath.toml");
    std::fs::write(&file, run(&["config", "init"]).stdout).expect("written");
    assert_eq!(told(&run(&["config", "check", file.to_str().expect("UTF-8")])).0, 0);
}

#[test]
fn show_names_the_origin_and_hides_the_password() {
    let mut command = towpath(&["config", "show", "--origin"]);
    let output = command.env("TOWPATH_STORE__URL", "postgres://me:hunter2@db/x").output().expect("runs");
    let (exit, text) = told(&output);
    assert_eq!(exit, 0);
    assert!(text.contains("environment TOWPATH_STORE__URL"), "{text}");
    assert!(text.contains("postgres://me:[redacted]@db/x") && !text.contains("hunter2"), "{text}");
}

#[test]
fn strangers_are_not_served_without_a_lock() {
    let (exit, text) = told(&run(&["serve", "--listen", "0.0.0.0:0", "--data", "/nowhere/data"]));
    assert_eq!(exit, 78, "{text}");
    assert!(text.contains("flag --listen: server.listen: 0.0.0.0:0 can be reached by strangers"), "{text}");
}

#[test]
fn a_flag_that_does_not_exist_is_2() {
    let (exit, text) = told(&run(&["serve", "--lisen", "127.0.0.1:0"]));
    assert_eq!(exit, 2);
    assert!(text.contains("--listen"), "{text}");
}
