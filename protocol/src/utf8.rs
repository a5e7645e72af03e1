//! UTF-8 checked as it arrives: a text message is refused at its first impossible byte, not at its
//! end.

/// The state between two pieces of one text: at most three bytes of an unfinished character.
#[derive(Debug, Default, Clone, Copy)]
pub struct Utf8 {
    pending: [u8; 4],
    len: u8,
}

/// A byte that no continuation can make valid.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Invalid;

impl Utf8 {
    /// Checks the next piece.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), Invalid> {
        while self.len > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return Ok(()) };
            piece = rest;
            self.push(byte);
            match std::str::from_utf8(self.unfinished()) {
                Ok(_) => self.len = 0,
                Err(e) if e.error_len().is_none() => {}
                Err(_) => return Err(Invalid),
            }
        }
        let Err(e) = std::str::from_utf8(piece) else { return Ok(()) };
        if e.error_len().is_some() {
            return Err(Invalid);
        }
        piece.iter().skip(e.valid_up_to()).for_each(|&byte| self.push(byte));
        Ok(())
    }

    /// Whether the text may end here: no character is left unfinished.
    pub fn is_complete(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.pending.get_mut(usize::from(self.len)) {
            *place = byte;
            self.len += 1;
        }
    }

    fn unfinished(&self) -> &[u8] {
        self.pending.get(..usize::from(self.len)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_impossible_prefix_fails_before_its_end() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.feed(&[0xce, 0xba, 0xf4]), Ok(()));
        assert!(!utf8.is_complete());
        assert_eq!(utf8.feed(&[0x90]), Err(Invalid), "beyond U+10FFFF");
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library_however_it_is_cut(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                ".{0,20}".prop_map(|s| s.into_bytes()),
            ],
            step in 1usize..5,
        ) {
            let mut utf8 = Utf8::default();
            let fed = bytes.chunks(step).try_for_each(|piece| utf8.feed(piece));
            let valid = fed.is_ok() && utf8.is_complete();
            prop_assert_eq!(valid, std::str::from_utf8(&bytes).is_ok());
        }
    }
}
