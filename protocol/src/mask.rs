//! Masking of client frames (RFC 6455 section 5.3).

/// XORs `bytes` with the four-byte `key`, in place. `offset` is how many bytes of the same frame
/// were done before, so that a frame can be unmasked piece by piece.
pub fn apply(bytes: &mut [u8], key: [u8; 4], offset: usize) {
    let mut turned = [0; 8];
    for (byte, key) in turned.iter_mut().zip(key.into_iter().cycle().skip(offset & 3)) {
        *byte = key;
    }
    let wide = u64::from_ne_bytes(turned);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(turned) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_definition_at_every_split(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            key in any::<[u8; 4]>(),
            cut in 0usize..200,
        ) {
            let expected: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
            let mut masked = bytes.clone();
            let cut = cut.min(masked.len());
            let (head, tail) = masked.split_at_mut(cut);
            super::apply(head, key, 0);
            super::apply(tail, key, cut);
            prop_assert_eq!(masked, expected);
        }
    }
}
