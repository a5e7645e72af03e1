//! What is wrong with `[drop]`. The directories themselves are looked at when the server starts.

use ringfeed_protocol::Dialect;

use super::schema::{Config, FileDrop};

impl Config {
    pub(super) fn validate_drop(&self, errors: &mut Vec<String>) {
        let FileDrop { dir, portico_dir, owners, .. } = &self.drop;
        if !dir.is_empty() && self.limits.idempotency_ms == 0 {
            errors.push(
                "drop.dir: limits.idempotency_ms = 0: what is dropped because it is not known whether it was published could be \
                 published twice; allowed are 1 or more"
                    .into(),
            );
        }
        if !portico_dir.is_empty() && !self.endpoints.iter().any(|e| e.dialect == Dialect::Portico)
        {
            errors.push(format!(
                "drop.portico_dir = {portico_dir:?}: its files are for clients of an endpoint with dialect = \"portico\", and \
                 there is none"
            ));
        }
        if !dir.is_empty() && dir == portico_dir {
            errors.push(format!("drop.portico_dir = {portico_dir:?}: drop.dir is the same"));
        }
        for owner in owners.iter().filter(|owner| owner.parse::<u32>().is_err()) {
            errors.push(format!(
                "drop.owners: {owner:?} is no number of a user; allowed are 0 to 4294967295, as `id -u NAME` prints them"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    #[test]
    fn what_cannot_be_is_named_with_what_is_allowed() {
        let load = |flags: &[&str]| {
            let flags = flags.iter().map(|&flag| flag.into()).collect();
            let loaded = Config::load(&Sources { flags, ..Sources::default() });
            loaded.map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(load(&["drop.dir=/d", "drop.owners=33,1000"]), Ok(()));
        for (flags, part) in [
            (&["drop.dir=/d", "limits.idempotency_ms=0"][..], "limits.idempotency_ms = 0"),
            (&["drop.portico_dir=/tmp"], "dialect = \"portico\""),
            (&["drop.dir=/d", "drop.portico_dir=/d"], "drop.dir is the same"),
            (&["drop.owners=www-data"], "\"www-data\" is no number of a user"),
        ] {
            let errors = load(flags).unwrap_err();
            assert!(errors.contains(part), "{flags:?}: {errors}");
        }
    }
}
