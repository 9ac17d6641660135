//! Which windows a message is compressed for.
//! Law: whoever agreed on a window can read every form that was made for it; a payload no longer than a window refers to
//! nothing beyond it, so all such windows share one form.

use super::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// A set of windows of 9 to 15 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows(u16);

impl Windows {
    /// Adds the window of so many bits. One that nobody can compress with is left out.
    #[inline]
    pub fn insert(&mut self, bits: u8) {
        self.0 |= (1_u16 << (bits & WINDOW_BITS_MAX)) & ALL;
    }

    /// Whether no window is in it.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its windows: bit n stands for the one of n bits.
    pub fn mask(self) -> u16 {
        self.0
    }

    /// The set that was written as [`Windows::mask`].
    pub fn of_mask(mask: u16) -> Self {
        Self(mask & ALL)
    }

    /// The forms that a payload of `payload_bytes` needs: whom each is for, and with which window it is to be compressed.
    pub fn forms(self, payload_bytes: usize) -> impl Iterator<Item = (Self, u8)> {
        let is_wide = move |bits: &u8| payload_bytes <= 1 << bits;
        let wide = self.bits().filter(is_wide).fold(0, |mask, bits| mask | 1 << bits);
        let together = (wide != 0).then(|| (Self(wide), wide.ilog2() as u8));
        let alone = self.bits().filter(move |bits| !is_wide(bits)).map(|bits| (Self(1 << bits), bits));
        together.into_iter().chain(alone)
    }

    fn bits(self) -> impl Iterator<Item = u8> {
        (WINDOW_BITS_MIN..=WINDOW_BITS_MAX).filter(move |bits| self.0 & 1 << bits != 0)
    }
}

impl FromIterator<u8> for Windows {
    fn from_iter<T: IntoIterator<Item = u8>>(bits: T) -> Self {
        let mut windows = Self::default();
        bits.into_iter().for_each(|bits| windows.insert(bits));
        windows
    }
}

impl FromIterator<Windows> for Windows {
    fn from_iter<T: IntoIterator<Item = Windows>>(sets: T) -> Self {
        Self(sets.into_iter().fold(0, |all, set| all | set.0))
    }
}

const ALL: u16 = ((1 << (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1)) - 1) << WINDOW_BITS_MIN;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Deflater, InflateLimits, Inflater};
    use super::*;

    #[track_caller]
    fn check(windows: &[u8], payload_bytes: usize, expected: &[(&[u8], u8)]) {
        let set = |bits: &[u8]| bits.iter().copied().collect::<Windows>();
        let expected: Vec<_> = expected.iter().map(|&(class, bits)| (set(class), bits)).collect();
        assert_eq!(set(windows).forms(payload_bytes).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn one_form_for_all_windows_that_hold_the_payload() {
        check(&[], 100, &[]);
        check(&[0, 8], 100, &[]);
        check(&[9, 15], 512, &[(&[9, 15], 15)]);
        check(&[9, 15], 513, &[(&[15], 15), (&[9], 9)]);
        check(&[9, 10, 11, 12, 13, 14, 15], 1_024, &[(&[10, 11, 12, 13, 14, 15], 15), (&[9], 9)]);
        check(&[10, 12], 1_000, &[(&[10, 12], 12)]);
        check(&[14, 15], 32_769, &[(&[14], 14), (&[15], 15)]);
    }

    #[test]
    fn sets_are_put_together_and_written_as_masks() {
        let set = |bits: &[u8]| bits.iter().copied().collect::<Windows>();
        let both: Windows = [set(&[9, 10]), set(&[10, 15])].into_iter().collect();
        assert_eq!(
            (both, both.mask(), Windows::of_mask(both.mask())),
            (set(&[9, 10, 15]), 0b1000_0110_0000_0000, both)
        );
        assert_eq!(Windows::of_mask(u16::MAX), set(&[9, 10, 11, 12, 13, 14, 15]), "no other bit is a window");
        assert!(set(&[0, 8]).is_empty() && !set(&[9]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// The form that is for a window can be read, and looks back no farther than that.
        #[test]
        fn everyone_reads_the_same(
            words in proptest::collection::vec("[a-e]{1,6}", 50..800),
            asked in proptest::collection::vec(8_u8..=15, 1..8),
            level in 1_u32..=9,
        ) {
            let payload = words.concat().into_bytes();
            let windows: Windows = asked.iter().copied().collect();
            let (mut deflater, mut inflater) = (Deflater::new(level), Inflater::default());
            let limits = InflateLimits { message_bytes_max: payload.len(), ratio_max: 200 };
            let mut served = 0;
            for (class, bits) in windows.forms(payload.len()) {
                prop_assert_eq!(served & class.mask(), 0, "one form each");
                served |= class.mask();
                let mut form = Vec::new();
                prop_assert!(deflater.deflate(&payload, bits, &mut form));
                let mut inflated = Vec::new();
                inflater.inflate(&form, false, &limits, &mut inflated).unwrap();
                prop_assert_eq!(&inflated, &payload);
                prop_assert!(class.bits().all(|window| bits <= window || payload.len() <= 1 << window));
            }
            prop_assert_eq!(served, windows.mask(), "everyone is served");
        }
    }
}
