//! Any bytes as a token: one that is read is written as the same text, and never as a word that stands beside
//! tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath::codec::token::Token;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<Token>() {
        let written = token.to_string();
        assert_eq!(written, text, "one token has one text");
        assert!(written != "-1" && written != "now");
        assert_eq!(written.parse::<Token>(), Ok(token));
    }
});
