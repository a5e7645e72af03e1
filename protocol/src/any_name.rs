//! Names that clients of existing systems give to channels: any text. In a channel's name the characters that it may not hold, and
//! `%`, stand as in a URL: `my room` is `my%20room`.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::channel_name::is_allowed;

/// What a text is in a channel's name.
pub fn encode(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c != '%' && is_allowed(c);
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut name = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) {
            name.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            // Writing to a String cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    Cow::Owned(name)
}

/// The text that a name, or its end, stands for. A name that no text became is shown as it is.
pub fn decode(name: &str) -> Cow<'_, str> {
    if !name.contains('%') {
        return Cow::Borrowed(name);
    }
    let text = unescape(name.as_bytes()).and_then(|text| String::from_utf8(text).ok());
    let text = text.filter(|text| encode(text) == name);
    text.map_or(Cow::Borrowed(name), Cow::Owned)
}

/// `None` where a `%` is not followed by two digits.
fn unescape(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(rest.len());
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            text.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        text.push(u8::from_str_radix(digits, 16).ok()?);
        rest = behind;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel_name;
    use proptest::prelude::*;

    #[test]
    fn what_a_name_may_not_hold_stands_as_in_a_url() {
        for (text, name) in [
            ("lounge", "lounge"),
            ("räume/1", "räume/1"),
            ("my room", "my%20room"),
            ("50%", "50%25"),
            ("a\"b\\c*", "a%22b%5Cc%2A"),
            ("\u{a0}", "%C2%A0"),
        ] {
            assert_eq!((&*encode(text), &*decode(name)), (name, text));
        }
    }

    #[test]
    fn a_name_that_no_text_became_is_shown_as_it_is() {
        for name in ["50%", "%4", "%zz", "%ff", "%41", "%2a", "a%20b%"] {
            assert_eq!(decode(name), name);
        }
    }

    proptest! {
        #[test]
        fn every_text_has_a_name_of_its_own(text in any::<String>().prop_filter("short", |t| !t.is_empty() && t.len() < 80)) {
            let name = encode(&text);
            prop_assert_eq!(channel_name::check(&name), Ok(()));
            prop_assert_eq!(decode(&name), text.as_str());
        }

        #[test]
        fn no_two_names_are_shown_alike(a in "[a%0-9A-F ]{0,8}", b in "[a%0-9A-F ]{0,8}") {
            // What clients say comes to one name, and what they are shown they can say.
            if encode(&a) == encode(&b) {
                prop_assert_eq!(a, b);
            }
        }
    }
}
