//! How two nodes show one another that they have the key, and sign what they say then.
//!
//! Who calls and who is called each draw 32 bytes at random, so that nothing that was said on another link means anything on
//! this one:
//!
//! ```text
//! caller:  "rfm2" | instance u64 | nonce [32]
//! called:  "rfm2" | instance u64 | nonce [32]
//! caller:  HMAC("caller" | both greetings)
//! called:  HMAC("called" | both greetings)
//! ```
//!
//! Then each way has a key of its own, made the same way, and carries *records*: `length u32 | frames | tag [16]`, the tag being
//! the first bytes of an HMAC over the record's number on this way, its length and its frames. All are HMAC-SHA256 (RFC 2104).
//! Nothing is encrypted.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::registry::views::Instance;

/// Which protocol, and which version of it.
const MAGIC: &[u8; 4] = b"rfm2";
/// Bytes of a greeting.
pub(super) const GREETING_BYTES: usize = 4 + 8 + 32;
/// Bytes of a proof that one has the key.
pub(super) const PROOF_BYTES: usize = 32;
/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 16;

/// What one says first.
#[derive(Debug, Clone)]
pub(super) struct Greeting([u8; GREETING_BYTES]);

impl Greeting {
    pub(super) fn new(own: Instance) -> Greeting {
        let mut bytes = [0; GREETING_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..12].copy_from_slice(&own.0.to_be_bytes());
        rand::fill(&mut bytes[12..]);
        Greeting(bytes)
    }

    /// One that came; `None` where it is none.
    pub(super) fn read(bytes: [u8; GREETING_BYTES]) -> Option<Greeting> {
        bytes.starts_with(MAGIC).then_some(Greeting(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Who says to say it.
    pub(super) fn instance(&self) -> Instance {
        let mut number = [0; 8];
        number.copy_from_slice(&self.0[4..12]);
        Instance(u64::from_be_bytes(number))
    }
}

/// Both greetings, and the key.
pub(super) struct Handshake<'a> {
    pub(super) key: &'a [u8],
    pub(super) caller: &'a Greeting,
    pub(super) called: &'a Greeting,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Called,
}

impl Handshake<'_> {
    fn mac(&self, what: &[u8]) -> Hmac<Sha256> {
        let mut mac = mac(self.key);
        mac.update(what);
        mac.update(self.caller.bytes());
        mac.update(self.called.bytes());
        mac
    }

    /// What a side shows.
    pub(super) fn proof(&self, of: Side) -> [u8; PROOF_BYTES] {
        self.mac(proof_name(of)).finalize().into_bytes().into()
    }

    /// Whether a side has shown it.
    pub(super) fn is_proof(&self, of: Side, proof: &[u8]) -> bool {
        self.mac(proof_name(of)).verify_slice(proof).is_ok()
    }

    /// What signs what a side says.
    pub(super) fn signer(&self, of: Side) -> Signer {
        let name: &[u8] = match of {
            Side::Caller => b"caller's records",
            Side::Called => b"called's records",
        };
        let key = self.mac(name).finalize().into_bytes();
        Signer { mac: mac(&key), number: 0 }
    }
}

fn proof_name(of: Side) -> &'static [u8] {
    match of {
        Side::Caller => b"caller",
        Side::Called => b"called",
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key may have any length")
}

/// Signs the records of one way, in order, or checks them.
#[derive(Debug, Clone)]
pub(super) struct Signer {
    mac: Hmac<Sha256>,
    number: u64,
}

impl Signer {
    fn over(&mut self, record: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(&self.number.to_be_bytes());
        mac.update(&(record.len() as u64).to_be_bytes());
        mac.update(record);
        self.number += 1;
        mac
    }

    /// The tag of the next record.
    pub(super) fn sign(&mut self, record: &[u8]) -> [u8; TAG_BYTES] {
        let whole = self.over(record).finalize().into_bytes();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&whole[..TAG_BYTES]);
        tag
    }

    /// Whether this is the next record.
    pub(super) fn is_signed(&mut self, record: &[u8], tag: &[u8]) -> bool {
        tag.len() == TAG_BYTES && self.over(record).verify_truncated_left(tag).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_key_is_believed_and_nobody_else() {
        let (caller, called) = (Greeting::new(Instance(1)), Greeting::new(Instance(2)));
        let handshake = |key| Handshake { key, caller: &caller, called: &called };
        let (here, there) = (handshake(b"key"), handshake(b"key"));
        assert_eq!(caller.instance(), Instance(1));
        for side in [Side::Caller, Side::Called] {
            assert!(there.is_proof(side, &here.proof(side)));
            assert!(!handshake(b"other").is_proof(side, &here.proof(side)));
        }
        assert!(!there.is_proof(Side::Caller, &here.proof(Side::Called)));
        // What was said on another link proves nothing.
        let again = Greeting::new(Instance(2));
        let later = Handshake { key: b"key", caller: &caller, called: &again };
        assert!(!later.is_proof(Side::Caller, &here.proof(Side::Caller)));
        assert!(Greeting::read(*b"GET / HTTP/1.1\r\nHost: localhost:9802\r\n\r\n....").is_none());
    }

    #[test]
    fn records_are_taken_once_in_order_and_as_they_were() {
        let (caller, called) = (Greeting::new(Instance(1)), Greeting::new(Instance(2)));
        let handshake = Handshake { key: b"key", caller: &caller, called: &called };
        let mut signer = handshake.signer(Side::Caller);
        let tags = [signer.sign(b"first"), signer.sign(b"second")];
        let checks = || handshake.signer(Side::Caller);
        let mut checker = checks();
        assert!(checker.is_signed(b"first", &tags[0]));
        assert!(checker.is_signed(b"second", &tags[1]));
        assert!(!checker.is_signed(b"second", &tags[1]));
        assert!(!checks().is_signed(b"second", &tags[1]));
        assert!(!checks().is_signed(b"First", &tags[0]));
        assert!(!checks().is_signed(b"first", &tags[0][..8]));
        assert!(!handshake.signer(Side::Called).is_signed(b"first", &tags[0]));
    }
}
