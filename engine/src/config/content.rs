//! Rules of `[[channels]]` that say what may be published.

use std::sync::Arc;

use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, Refused};

use super::file;
use super::keys::printable;
use super::schema::{ChannelRule, Config};
use crate::content::{CHECKED_BYTES_MAX, Content, Schema};

/// Largest file with a schema.
const FILE_BYTES_MAX: u64 = 1 << 16;

impl Config {
    /// Reads the schemas, and makes of what a rule says of publications what holds for them.
    pub(super) fn read_contents(&mut self, errors: &mut Vec<String>) {
        for (i, rule) in self.channels.iter_mut().enumerate() {
            if let Err(why) = rule.read_content() {
                let path = printable(&rule.schema);
                errors.push(format!("channels[{i}].schema: {path}: {why}"));
            }
        }
    }

    /// Whether any rule says what may be published.
    pub fn says_content(&self) -> bool {
        self.channels.iter().any(|rule| rule.content.is_some())
    }
}

impl ChannelRule {
    /// Makes of what it says of publications what holds for them; or what is wrong with its schema.
    pub(super) fn read_content(&mut self) -> Result<(), String> {
        let (bytes_max, schema) = (self.message_bytes_max, self.read_schema()?);
        let says_anything = schema.is_some() || bytes_max > 0;
        self.content = says_anything.then(|| Arc::new(Content { bytes_max, schema }));
        Ok(())
    }

    fn read_schema(&self) -> Result<Option<Schema>, String> {
        if self.schema.is_empty() {
            return Ok(None);
        }
        let bytes_max = self.message_bytes_max;
        if !(1..=CHECKED_BYTES_MAX).contains(&bytes_max) {
            return Err(format!(
                "how long a look at a message takes grows with its length; set message_bytes_max beside it, to \
                 {CHECKED_BYTES_MAX} or less"
            ));
        }
        let text = file::read_text(&self.schema, FILE_BYTES_MAX).map_err(|e| e.to_string())?;
        Schema::parse(&text).map(Some)
    }

    /// Whether a payload may be published on one of its channels, whoever publishes it.
    pub fn check_content(
        &self,
        channel: &ChannelName,
        kind: PayloadKind,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        self.content.as_ref().map_or(Ok(()), |content| content.check(channel, kind, bytes))
    }

    /// Whether shards have to look at what is published to its channels, or at who publishes it.
    pub fn looks_at_publications(&self) -> bool {
        self.asks_who_publishes() || self.content.is_some() || self.messages_per_second_max > 0
    }
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::ChannelName;
    use ringfeed_protocol::command::PayloadKind;

    use crate::config::tests::load_rule as load;

    #[test]
    fn what_a_rule_says_of_publications_is_read_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"type":"string"}"#).unwrap();
        let rule = format!("schema = {:?}\nmessage_bytes_max = 9", file.path());
        let config = load(&rule).unwrap();
        file.close().unwrap();
        let content = config.rule("r.1").unwrap().content.as_ref().unwrap();
        let channel = ChannelName::new("r.1").unwrap();
        let check = |text: &str| content.check(&channel, PayloadKind::Json, text.as_bytes());
        assert!(check("\"1234567\"").is_ok() && check("\"12345678\"").is_err());
        assert!(check("1").is_err() && config.says_content());
        let silent = load("messages_per_second_max = 1").unwrap();
        assert!(silent.rule("r.1").unwrap().content.is_none() && !silent.says_content());
        assert!(silent.rule("r.1").unwrap().looks_at_publications());
        assert!(!load("").unwrap().rule("r.1").unwrap().looks_at_publications());
    }

    #[test]
    fn a_schema_that_is_not_there_or_is_wrong_is_told_with_its_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let bound = "set message_bytes_max beside it, to 65536 or less";
        for (text, keys, why) in [
            ("true", "", bound),
            ("true", "message_bytes_max = 65537", bound),
            (r#"{"maximum":"9"}"#, "message_bytes_max = 9", "/maximum: \"9\" is not of type"),
            ("{,}", "message_bytes_max = 9", "it is not JSON: key must be a string at line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let errors = load(&format!("schema = {path:?}\n{keys}")).unwrap_err();
            let place = format!("channels[0].schema: {path}: ");
            assert!(errors.starts_with(&place) && errors.contains(why), "{errors}");
        }
        let errors = load("schema = \"/no/such\"\nmessage_bytes_max = 9").unwrap_err();
        assert!(errors.starts_with("channels[0].schema: /no/such: No such file"), "{errors}");
        std::fs::write(&path, " ".repeat((1 << 16) + 1)).unwrap();
        let errors = load(&format!("schema = {path:?}\nmessage_bytes_max = 9")).unwrap_err();
        assert!(errors.contains("it has more than 65536 bytes"), "{errors}");
    }
}
