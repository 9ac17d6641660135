//! Random numbers that nobody can guess, taken from the kernel by the kilobyte: a call for each session would cost more
//! than the rest of its set-up.
//! Law: no number is handed out twice; what was handed out is forgotten here.

/// A stock of the kernel's random numbers.
#[derive(Debug)]
pub(in crate::io) struct Random {
    stock: [u64; STOCK],
    left: usize,
}

const STOCK: usize = 128;

impl Default for Random {
    fn default() -> Self {
        Self { stock: [0; STOCK], left: 0 }
    }
}

impl Random {
    /// The next number.
    pub(in crate::io) fn draw(&mut self) -> u64 {
        if self.left == 0 {
            let mut bytes = [0; STOCK * 8];
            getrandom::fill(&mut bytes).expect("the kernel's random numbers, there since Linux 3.17");
            for (number, bytes) in self.stock.iter_mut().zip(bytes.as_chunks().0) {
                *number = u64::from_ne_bytes(*bytes);
            }
            self.left = STOCK;
        }
        self.left -= 1;
        std::mem::take(&mut self.stock[self.left])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_across_refills() {
        let mut random = Random::default();
        let drawn: std::collections::HashSet<_> = (0..3 * STOCK).map(|_| random.draw()).collect();
        assert_eq!(drawn.len(), 3 * STOCK);
    }
}
