//! JSON that is handed on as it came, checked where serde_json does not look.

/// Whether a valid JSON text escapes half a character: a `\ud800` to `\udfff` that is not one of a
/// pair. RFC 8259 section 8.2 calls what receivers make of it unpredictable: some refuse the whole
/// text, others put `U+FFFD` there.
pub(crate) fn has_lone_surrogate(json: &str) -> bool {
    let mut rest = json;
    // Backslashes stand in strings alone, each before the sign it escapes.
    while let Some(at) = rest.find('\\') {
        rest = rest.get(at..).unwrap_or_default();
        let (code, behind) = match escaped_unit(rest) {
            Some(unit) => unit,
            None => {
                rest = rest.get(2..).unwrap_or_default();
                continue;
            }
        };
        rest = match code {
            0xd800..=0xdbff => match escaped_unit(behind) {
                Some((0xdc00..=0xdfff, behind)) => behind,
                _ => return true,
            },
            0xdc00..=0xdfff => return true,
            _ => behind,
        };
    }
    false
}

/// The UTF-16 unit that `\u` and four hex digits at the start of `text` stand for, and what follows it.
fn escaped_unit(text: &str) -> Option<(u16, &str)> {
    let (escape, behind) = text.split_at_checked(6)?;
    let digits = escape.strip_prefix("\\u")?;
    Some((u16::from_str_radix(digits, 16).ok()?, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_of_characters_are_found_and_nothing_else() {
        for lone in [
            r#""\ud800""#,
            r#""\uD83D x""#,
            r#""\udc00""#,
            r#"{"a":["\\\udfff"]}"#,
            r#"{"\ud800":1}"#,
            r#""\ud800\ud800\udc00""#,
            r#""\ud800\n\udc00""#,
            r#""\ud83d\ude00\ude00""#,
        ] {
            assert!(has_lone_surrogate(lone), "{lone}");
        }
        for whole in [
            r#""\ud83d\ude00""#,
            r#""\\ud800""#,
            r#""\\\\udc00 \u00e4\"""#,
            "[1,null]",
            r#""\ud7ff""#,
        ] {
            assert!(!has_lone_surrogate(whole), "{whole}");
        }
    }

    proptest! {
        /// Exactly what serde_json refuses when it has to decode the string.
        #[test]
        fn it_agrees_with_a_decoder(parts in proptest::collection::vec(
            prop_oneof![
                (0xd700u32..0xe100).prop_map(|unit| format!("\\u{unit:04x}")),
                (0xd700u32..0xe100).prop_map(|unit| format!("\\u{unit:04X}")),
                Just("\\\\".to_owned()),
                Just("\\n".to_owned()),
                "[a-fu0-9 ]{0,3}",
            ],
            0..8,
        )) {
            let json = format!("\"{}\"", parts.concat());
            prop_assert_eq!(has_lone_surrogate(&json), serde_json::from_str::<String>(&json).is_err());
        }
    }
}
