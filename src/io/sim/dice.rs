//! The one source of chance in a simulated world.
//! Law: the same seed and the same questions give the same answers, on every machine.

/// A small generator of pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0..end`; `end` must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// True with this probability (0.0 never, 1.0 always).
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits are what an f64 can hold, so the quotient lies in 0.0..1.0.
        probability > 0.0 && ((self.bits() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// True every other time.
    pub fn coin(&mut self) -> bool {
        self.bits() & 1 == 0
    }

    /// A size in `1..=max` with a liking for the ends, where the mistakes are; `max` must not be 0.
    pub fn part_of(&mut self, max: usize) -> usize {
        match self.bits() & 3 {
            0 => 1,
            1 => max,
            2 => 1 + self.below(max.min(8)),
            _ => 1 + self.below(max),
        }
    }

    /// Puts a list in random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

/// Scatters 64 bits so that each input bit reaches every output bit.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falls_as_splitmix64_does() {
        // First outputs of the reference implementation for the seed 1234567.
        let mut dice = Dice::new(1_234_567);
        assert_eq!((dice.bits(), dice.bits()), (6_457_827_717_110_365_317, 3_203_168_211_198_807_973));
    }

    #[test]
    fn stays_in_range() {
        let mut dice = Dice::new(1);
        assert!((0..1000).all(|_| (1..=5).contains(&dice.part_of(5)) && dice.below(3) < 3));
        assert!((0..1000).all(|_| !dice.chance(0.0) && dice.chance(1.0)));
        let hits = (0..10_000).filter(|_| dice.chance(0.1)).count();
        assert!((800..1200).contains(&hits), "{hits}");
    }
}
