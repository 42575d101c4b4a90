use super::*;

fn file(text: &str) -> Sources {
    Sources { file: Some((PathBuf::from("t.toml"), text.to_owned())), ..Sources::default() }
}

fn env(variable: &str, value: &str) -> Vec<(String, String)> {
    vec![(variable.to_owned(), value.to_owned())]
}

/// What is wrong with a file, one line a problem.
fn wrong(text: &str) -> String {
    Config::load(&file(text)).expect_err("this file is wrong").to_string()
}

#[test]
fn nothing_given_is_the_defaults() {
    let config = Config::load(&Sources::default()).expect("defaults agree");
    assert_eq!(config, Config::default());
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:7700");
    assert_eq!(config.origin("server.listen"), Origin::Default);
}

#[test]
fn what_is_closer_to_the_hand_wins() {
    let mut sources = file("[server]\nlisten = '127.0.0.1:1'\ndrain_window = '1s'\n");
    sources.environment = env("TOWPATH_SERVER__LISTEN", "127.0.0.1:2");
    let config = Config::load(&sources).expect("reads");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:2");
    assert_eq!(config.origin("server.listen").to_string(), "environment TOWPATH_SERVER__LISTEN");
    assert_eq!(config.origin("server.drain_window").to_string(), "t.toml:3:1");

    sources.flags = vec![Flag { flag: "--listen", name: "server.listen", value: "localhost:3".to_owned() }];
    let config = Config::load(&sources).expect("reads");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:3");
    assert_eq!(config.origin("server.listen"), Origin::Flag("--listen"));
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_known_one() {
    assert_eq!(
        wrong("[server]\n  lisen = \"127.0.0.1:1\"\n"),
        "t.toml:2:3: unknown key `server.lisen`; did you mean `server.listen`?"
    );
    assert_eq!(wrong("[srever]\n"), "t.toml:1:2: unknown section [srever]; did you mean [server]?");
    assert_eq!(
        wrong("[server]\nreaders = 3\n"),
        "t.toml:2:1: unknown key `server.readers`; did you mean `store.readers`?"
    );
    assert_eq!(
        wrong("listen = '127.0.0.1:1'\n"),
        "t.toml:1:1: `listen` is outside of every section; did you mean `server.listen`?"
    );
    assert_eq!(wrong("[store]\nqwertyuiop = 1\n"), "t.toml:2:1: unknown key `store.qwertyuiop`");
    let sources = Sources { environment: env("TOWPATH_LOG__LEVLE", "info"), ..Sources::default() };
    assert_eq!(
        Config::load(&sources).expect_err("unknown").to_string(),
        "environment TOWPATH_LOG__LEVLE: unknown key `log.levle`; did you mean `log.level`?"
    );
}

#[test]
fn other_variables_of_the_environment_are_left_alone() {
    for variable in ["TOWPATH_TOKEN", "PATH", "TOWPATH", "OTHER__THING"] {
        let sources = Sources { environment: env(variable, "x"), ..Sources::default() };
        assert_eq!(Config::load(&sources).expect("left alone"), Config::default());
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text =
        wrong("[server]\nlisten = 7700\ndrain_window = '5 parsecs'\nio_threads = 0\n[store]\nreaders = -1\n");
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "t.toml:2:1: server.listen: 7700 is not an address like 127.0.0.1:7700, [::]:7700 or unix:/run/towpath.sock",
            "t.toml:3:1: server.drain_window: \"5 parsecs\" is not a time like 250ms, 5s, 10min, 24h",
            "t.toml:4:1: server.io_threads: 0 is never \"off\": write a number above 0 (or \"auto\")",
            "t.toml:6:1: store.readers: -1 is not a whole number above 0",
        ]
    );
}

#[test]
fn broken_toml_is_told_with_its_place() {
    assert!(wrong("[server]\nlisten = \n").starts_with("t.toml:2:"), "{}", wrong("[server]\nlisten = \n"));
}

#[test]
fn an_open_door_without_a_lock_is_refused() {
    assert!(
        wrong("[server]\nlisten = '0.0.0.0:80'\n")
            .starts_with("t.toml:2:1: server.listen: 0.0.0.0:80 can be")
    );
    for more in ["insecure = true", "[auth]\ntoken_file = 't'"] {
        let text = format!("[server]\nlisten = '0.0.0.0:80'\n{more}\n");
        Config::load(&file(&text)).expect("a decision was made");
    }
}

#[test]
fn settings_that_contradict_are_refused() {
    assert_eq!(
        wrong("[server]\ndrain_window = '11s'\n"),
        "t.toml:2:1: server.drain_window: is longer than server.shutdown_total, of which it is a part"
    );
}

#[test]
fn a_password_shows_nowhere() {
    let secret = "postgres://me:hunter2@db:5432/x?password=hunter2";
    let config = Config::load(&file(&format!("[store]\nurl = '{secret}'\n"))).expect("reads");
    assert_eq!(config.store.url, StoreAt::Postgres(secret.to_owned()));
    let shown = format!("{config:?} {:?}", config.values());
    assert!(!shown.contains("hunter2") && shown.contains("postgres://me:[redacted]@db:5432/x"), "{shown}");
    assert!(!wrong(&format!("[store]\nurl = 'x{secret}'\n")).contains("hunter2"));
    assert_eq!(Config::default().needs_restart(&config), ["store.url"]);
}

#[test]
fn a_reload_lists_what_needs_a_restart() {
    let new = Config::load(&file("[log]\nlevel = 'debug'\n[store]\nreaders = 9\n")).expect("reads");
    assert_eq!(Config::default().needs_restart(&new), ["store.readers"]);
}

#[test]
fn times_and_sizes_are_written_as_they_are_said() {
    let time = |text: &str| Duration::read(&Raw::Text(text.to_owned()));
    assert_eq!(time("1min30s"), Ok(Duration::from_secs(90)));
    assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
    assert_eq!(time(" 2 h "), Ok(Duration::from_secs(7200)));
    for bad in ["", "5", "s", "5s!", "-1s", "1.5s", "99999999999999999999d", "18446744073709551615d"] {
        assert!(time(bad).is_err(), "{bad}");
    }
    assert!(time("0s").is_err_and(|text| text.contains("never \"off\"")));
    let size = |text: &str| Size::read(&Raw::Text(text.to_owned())).map(|size| (size.bytes(), size.write()));
    assert_eq!(size("1536KiB"), Ok((1_572_864, "\"1536KiB\"".to_owned())));
    assert_eq!(size("1048576B"), Ok((1 << 20, "\"1MiB\"".to_owned())));
    assert!(size("1MB").is_err());
}

#[test]
fn the_sample_file_reads_back_as_the_defaults() {
    let config = Config::load(&file(&sample())).expect("the sample reads");
    assert_eq!(config, Config::default());
    // And so does every line of it once it is uncommented.
    let uncommented: String = sample()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if KEYS.iter().any(|k| {
                    rest.starts_with(&format!("{} = ", k.name.split('.').next_back().unwrap_or("")))
                }) =>
            {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let config = Config::load(&file(&uncommented)).expect("the uncommented sample reads");
    assert_eq!(config.values(), Config::default().values());
    assert!(KEYS.iter().all(|key| config.origin(key.name) != Origin::Default));
}

#[test]
fn every_setting_is_explained() {
    for key in KEYS {
        assert!(key.doc.trim().len() > 5, "{} needs a sentence", key.name);
    }
    assert!(SECTIONS.iter().all(|section| !section.doc.trim().is_empty()));
}
