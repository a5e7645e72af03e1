//! Who may use the HTTP API: keys, kept as their SHA-256, and what each may do.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::config::Scope;
use crate::config::rules::matches;

/// SHA-256 of a key, or of the password of a room. What a request brings is hashed before it is compared, so how long a comparison takes says
/// nothing about the key, even if it could be measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of a key as it is sent.
    pub fn of(key: &[u8]) -> KeyHash {
        KeyHash(Sha256::digest(key).into())
    }

    /// Whether it is the same, in a time that does not depend on where they differ.
    pub fn is(self, other: KeyHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// As it is written for other nodes.
    pub(crate) fn bytes(self) -> [u8; 32] {
        self.0
    }

    /// As another node has written it.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> KeyHash {
        KeyHash(bytes)
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &[u8]) -> Option<KeyHash> {
        let digit = |&byte: &u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
        let digits: Option<Vec<u8>> = text.iter().map(digit).collect();
        let digits: [u8; 64] = digits?.try_into().ok()?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        }
        Some(KeyHash(hash))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// One who uses the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For logs and metrics.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Names of channels, with `*` for any run of characters.
    pub channels: Vec<String>,
}

impl Caller {
    /// Who may do everything.
    pub fn of_everything(name: String) -> Caller {
        Caller { name, scopes: vec![Scope::All], channels: vec!["*".into()] }
    }

    /// Whether it may do what needs this scope.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|&own| own == Scope::All || own == scope)
    }

    /// Whether it may publish to a channel, read it and know of it.
    pub fn may_use(&self, channel: &str) -> bool {
        self.channels.iter().any(|pattern| matches(pattern, channel))
    }
}

/// Everybody with a key, in the order of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Callers(Vec<(KeyHash, Arc<Caller>)>);

impl Callers {
    /// No two have one key.
    pub fn new(callers: Vec<(KeyHash, Caller)>) -> Callers {
        Callers(callers.into_iter().map(|(hash, caller)| (hash, caller.into())).collect())
    }

    /// Whether nobody has a key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key this is, and its hash; no key at all is nobody's. Every key is compared, whether or not an earlier one fits, in a
    /// time that depends neither on where they differ nor on which fits.
    pub fn find(&self, key: &[u8]) -> Option<&(KeyHash, Arc<Caller>)> {
        let given = KeyHash::of(key);
        let mut found = u32::MAX;
        for (number, (KeyHash(own), _)) in (0u32..).zip(&self.0) {
            found.conditional_assign(&number, own.ct_eq(&given.0));
        }
        let number = usize::try_from(found).ok()?;
        self.0.get(number).filter(|_| !key.is_empty())
    }

    /// Who has the key with this hash, which was found before and not brought by anybody just now.
    pub fn holder(&self, key: &KeyHash) -> Option<&Arc<Caller>> {
        self.0.iter().find(|(own, _)| own == key).map(|(_, caller)| caller)
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    fn callers(keys: &[&str]) -> Callers {
        let caller =
            |key: &&str| (KeyHash::of(key.as_bytes()), Caller::of_everything(format!("of {key}")));
        Callers::new(keys.iter().map(caller).collect())
    }

    #[test]
    fn a_key_is_found_whole_and_no_other_way() {
        let callers = callers(&["first-key", "second-key", "third-key"]);
        for key in ["first-key", "second-key", "third-key"] {
            let (_, caller) = callers.find(key.as_bytes()).unwrap();
            assert_eq!(caller.name, format!("of {key}"));
        }
        for wrong in ["", "first-ke", "first-key ", "First-key", "fourth-key"] {
            assert!(callers.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert!(Callers::default().find(b"").is_none());
        assert!(super::tests::callers(&[""]).find(b"").is_none(), "no key is nobody's key");
    }

    #[test]
    fn hashes_are_read_and_never_shown() {
        let hex = "2C26B46B68FFC68FF99B453C1D30413413422D706483BFA0F98A5E886266E7AE";
        let hash = KeyHash::from_hex(hex.as_bytes()).unwrap();
        assert!(hash == KeyHash::of(b"foo") && format!("{hash:?}") == "(secret)");
        let long = format!("{hex}0");
        for wrong in ["", "2c26", &hex[1..], &long, &hex.replace('2', "g"), &"é".repeat(32)] {
            assert!(KeyHash::from_hex(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn scopes_and_patterns_say_what_a_caller_may() {
        let caller = Caller {
            name: "ticker".into(),
            scopes: vec![Scope::Publish, Scope::Stats],
            channels: vec!["quotes.*".into(), "news".into()],
        };
        assert!(
            caller.may(Scope::Publish) && !caller.may(Scope::History) && !caller.may(Scope::All)
        );
        assert!(caller.may_use("quotes.a") && caller.may_use("news"));
        assert!(!caller.may_use("newsletter") && !caller.may_use("quotes"));
        let all = Caller::of_everything(String::new());
        assert!(all.may(Scope::Metrics) && all.may_use("anything"));
    }

    /// Like dudect (Reparaz, Balasch, Verbauwhede, 2017): two classes of wrong keys, at random one after the other, and
    /// Welch's t of the times that finding nobody took, without the slowest tenth, which is the machine's.
    #[test]
    #[ignore = "takes seconds on a machine that does nothing else: cargo test --release -- --ignored timing"]
    fn timing_tells_nothing_about_keys() {
        const COMPARISONS: usize = 1_000_000;
        let keys: Vec<String> = (0..8).map(|i| format!("0123456789abcdef-{i}")).collect();
        let callers = callers(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        let mut rng = SmallRng::seed_from_u64(rand::random());
        // All are made before the first is timed: what chooses between the classes must not be seen in the times.
        let classes: Vec<(bool, [u8; 18])> = (0..COMPARISONS)
            .map(|_| {
                let mut key = *b"0123456789abcdef-0";
                let near = rng.random_bool(0.5);
                let own = if near { 17 } else { 0 };
                key[own..].iter_mut().for_each(|byte| *byte = rng.random_range(b'8'..=b'~'));
                (near, key)
            })
            .collect();
        let time = |key: &[u8; 18]| {
            let began = Instant::now();
            assert!(black_box(&callers).find(black_box(key)).is_none());
            began.elapsed().as_nanos() as f64
        };
        let all: Vec<f64> = classes.iter().map(|(_, key)| time(key)).collect();
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let most = sorted[sorted.len() * 9 / 10];
        let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        classes.iter().zip(all).for_each(|((near, _), time)| times[usize::from(*near)].push(time));
        let [(n0, m0, v0), (n1, m1, v1)] = times.map(|times| {
            let kept: Vec<f64> = times.into_iter().filter(|&time| time <= most).collect();
            let n = kept.len() as f64;
            let mean = kept.iter().sum::<f64>() / n;
            (n, mean, kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (n - 1.0))
        });
        let t = (m0 - m1) / (v0 / n0 + v1 / n1).sqrt();
        println!("random {m0:.1} ns, near {m1:.1} ns, t = {t:.2} over {} comparisons", n0 + n1);
        assert!(t.abs() < 4.5, "t = {t}");
    }
}
