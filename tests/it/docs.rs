//! The manual's generated pages say what the code says. `UPDATE=1 cargo test --test it docs` writes them.

use std::fs;
use std::path::Path;

/// Compares a file with what the code would write; with UPDATE=1, writes it.
fn check(file: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, expected).expect("a page is written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        found == expected,
        "{file} differs from the code at line {:?}: run `UPDATE=1 cargo test --test it docs`",
        differs.map(|line| line + 1)
    );
}

#[test]
fn the_configuration_page_is_what_the_code_says() {
    check("docs/configuration.md", &towpath::config::manual());
}

#[test]
fn the_deployed_sample_has_every_setting() {
    check("examples/deploy/towpath.toml", &towpath::config::sample());
}

#[test]
fn the_metrics_page_lists_every_figure() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut config = towpath::config::Config::default();
    config.store.data = data.path().to_owned();
    config.server.listen = towpath::config::ListenAt::Tcp(([127, 0, 0, 1], 0).into());
    let daemon = towpath::daemon::Daemon::start(&towpath::rt::Rt::real(), &config).expect("it starts");
    check("docs/metrics.md", &towpath::metrics::manual(daemon.figures()));
}

#[test]
fn the_board_shows_figures_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("a file");
    let page = read("docs/metrics.md");
    let board = read("examples/deploy/grafana.json");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names: Vec<&str> = board
        .match_indices("towpath_")
        .map(|(at, _)| &board[at..at + board[at..].find(|c| !is_name(c)).unwrap_or(0)])
        .collect();
    assert!(names.len() > 5, "the board has panels");
    for name in names {
        let name = name.trim_end_matches("_bucket").trim_end_matches("_count").trim_end_matches("_sum");
        assert!(page.contains(&format!("`{name}`")), "docs/metrics.md has no {name}");
    }
}
