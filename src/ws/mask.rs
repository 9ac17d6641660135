//! Masking: XOR with the client's 4-byte key (RFC 6455 §5.3).
//! Law: right for every length and alignment; a payload that arrives in pieces is unmasked piece by piece.

/// Unmasks `bytes` in place with `key`, whose first byte belongs to the first of `bytes`, and returns the key for the
/// byte that follows them.
#[inline]
pub fn apply(bytes: &mut [u8], key: [u8; 4]) -> [u8; 4] {
    // Lanes byte by byte: the compiler makes vector instructions of it, and no alignment is asked for. What is left is
    // done by words, since most messages are short.
    let lane_key: [u8; LANE] = std::array::from_fn(|index| key[index % 4]);
    let (lanes, tail) = bytes.as_chunks_mut::<LANE>();
    for lane in lanes {
        for (byte, key) in lane.iter_mut().zip(lane_key) {
            *byte ^= key;
        }
    }
    let (words, tail) = tail.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key) {
        *byte ^= key;
    }
    let mut next = key;
    next.rotate_left(bytes.len() % 4);
    next
}

/// Bytes a step: two vectors of the x86-64 baseline, a multiple of the key.
const LANE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every start, length and cut against one byte at a time.
    #[test]
    fn every_alignment_length_and_phase() {
        let key = [0x6d, 0xb6, 0xb2, 0x80];
        let plain: [u8; 3 * LANE] = std::array::from_fn(|index| (index * 7) as u8);
        for start in 0..9 {
            for len in 0..=plain.len() - start {
                let plain = &plain[start..start + len];
                let masked: Vec<u8> = plain.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
                for cut in 0..=len.min(9) {
                    let mut unmasked = vec![0; start];
                    unmasked.extend_from_slice(&masked);
                    let (head, tail) = unmasked[start..].split_at_mut(cut);
                    let next = apply(tail, apply(head, key));
                    assert_eq!(&unmasked[start..], plain, "start {start} len {len} cut {cut}");
                    assert_eq!(next[0], key[len % 4]);
                }
            }
        }
    }
}
