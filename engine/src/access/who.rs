//! Whom a permission is about: `permissions.who`.

use ringfeed_protocol::UserId;
use smol_str::SmolStr;

use super::Identity;

/// Some connections, by who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Every one.
    Anyone,
    /// Those without a user.
    Anonymous,
    /// Those with a user.
    Users,
    /// Those of one user.
    User(UserId),
    /// Those with an attribute, as [`Identity::attributes`] has it.
    Attribute(SmolStr),
}

/// A text that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is nobody: allowed are anyone, anonymous, users, user:ID, role:NAME and claim:NAME=VALUE"
)]
pub struct Nobody(String);

impl Who {
    /// Reads what stands in a configuration.
    pub(crate) fn parse(text: &str) -> Result<Who, Nobody> {
        let nobody = || Nobody(text.to_owned());
        let who = match text.split_once(':') {
            None if text == "anyone" => Who::Anyone,
            None if text == "anonymous" => Who::Anonymous,
            None if text == "users" => Who::Users,
            Some(("user", id)) => Who::User(UserId::new(id).map_err(|_| nobody())?),
            Some(("role", name)) if !name.is_empty() => Who::Attribute(text.into()),
            Some(("claim", claim)) if claim.find('=').is_some_and(|at| at > 0) => {
                Who::Attribute(text.into())
            }
            _ => return Err(nobody()),
        };
        Ok(who)
    }

    /// The role, where it is those who have one.
    pub(crate) fn role(&self) -> Option<&str> {
        match self {
            Who::Attribute(attribute) => attribute.strip_prefix("role:"),
            _ => None,
        }
    }

    /// Whether somebody is among them.
    pub(crate) fn fits(&self, identity: &Identity) -> bool {
        match self {
            Who::Anyone => true,
            Who::Anonymous => identity.user.is_none(),
            Who::Users => identity.user.is_some(),
            Who::User(id) => identity.user.as_ref() == Some(id),
            Who::Attribute(attribute) => identity.attributes.contains(attribute),
        }
    }
}

/// The attribute of a role.
pub(crate) fn role(name: &str) -> SmolStr {
    smol_str::format_smolstr!("role:{name}")
}

/// The attribute of a claim. No name of a claim that is configured holds `=`, so that no value of one claim reads like
/// another claim.
pub(crate) fn claim(name: &str, value: &str) -> SmolStr {
    smol_str::format_smolstr!("claim:{name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_names_whom_it_says() {
        let ann = Identity {
            user: Some(UserId::new("ann").unwrap()),
            attributes: [role("editor"), claim("tier", "gold"), claim("n", "a=b")].into(),
            ..Identity::default()
        };
        let nobody = Identity::default();
        for (text, fits_ann, fits_nobody) in [
            ("anyone", true, true),
            ("anonymous", false, true),
            ("users", true, false),
            ("user:ann", true, false),
            ("user:bob", false, false),
            ("user:ann:x", false, false),
            ("role:editor", true, false),
            ("role:edit", false, false),
            ("role:claim:tier=gold", false, false),
            ("claim:tier=gold", true, false),
            ("claim:tier=silver", false, false),
            ("claim:n=a=b", true, false),
            ("claim:n=", false, false),
        ] {
            let who = Who::parse(text).unwrap();
            assert_eq!((who.fits(&ann), who.fits(&nobody)), (fits_ann, fits_nobody), "{text}");
        }
    }

    #[test]
    fn texts_that_name_nobody_are_refused() {
        for bad in
            ["", "Anyone", "user", "user:", "user:a\nb", "role:", "claim:a", "claim:=b", "any:one"]
        {
            assert_eq!(Who::parse(bad), Err(Nobody(bad.into())), "{bad}");
        }
    }
}
