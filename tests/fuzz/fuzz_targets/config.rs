//! Any bytes as a file of settings: it is read, or everything wrong with it is told; what was read is written and
//! read as the same.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use towpath::config::{Config, Flag, Sources};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let from = |text: String| Sources { file: Some((PathBuf::from("f"), text)), ..Sources::default() };
    match Config::load(&from(text.to_owned())) {
        Err(error) => assert!(!error.problems.is_empty() && !error.to_string().is_empty()),
        Ok(config) => {
            let mut sections = std::collections::BTreeMap::<&str, String>::new();
            for (name, value) in config.values() {
                // An address without its password is another address.
                if name != "store.url" {
                    let (section, key) = name.split_once('.').expect("a name has a section");
                    *sections.entry(section).or_default() += &format!("{key} = {value}\n");
                }
            }
            let again: String = sections.iter().map(|(name, keys)| format!("[{name}]\n{keys}")).collect();
            let url = "postgres://h/d".to_owned();
            let flag = Flag { flag: "--store", name: "store.url", value: url };
            let sources = Sources { flags: vec![flag], ..from(again) };
            let again = Config::load(&sources).expect("what is written reads back");
            let values = |config: &Config| {
                config.values().into_iter().filter(|(name, _)| *name != "store.url").collect::<Vec<_>>()
            };
            assert_eq!(values(&again), values(&config), "and is the same");
        }
    }
});
