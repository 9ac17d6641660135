//! Compressed payloads (RFC 7692 §7.2): a message's payload to its compressed form and back.
//! Law: output is bounded while it is made, by the limits and never by what the input declares; a codec forgets every
//! message when it is done, unless its peer's messages refer to each other.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{WINDOW_BITS_MAX, WINDOW_BITS_MIN, WINDOWS};
use crate::ws::error::ProtocolError;

/// What a compressed message may become.
#[derive(Clone, Copy, Debug)]
pub struct InflateLimits {
    /// Largest message in bytes, inflated.
    pub message_bytes_max: usize,
    /// Inflated bytes for each compressed one, once a message has more than 64 KiB of them.
    pub ratio_max: usize,
}

/// Inflates messages.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { stream: Decompress::new_with_window_bits(false, WINDOW_BITS_MAX) }
    }
}

impl Inflater {
    /// Inflates the payload of one message into `message`, in place of what is there. With `takeover` the next message
    /// may refer to this one.
    ///
    /// # Errors
    /// Bytes that are no DEFLATE data, or an inflated message over a limit.
    pub fn inflate(
        &mut self,
        payload: &[u8],
        takeover: bool,
        limits: &InflateLimits,
        message: &mut Vec<u8>,
    ) -> Result<(), ProtocolError> {
        let InflateLimits { message_bytes_max, ratio_max } = *limits;
        // Told from a message of that size by one byte more.
        let bytes_max = message_bytes_max.min(payload.len().saturating_mul(ratio_max).max(RATIO_EXEMPT_BYTES));
        message.clear();
        // §7.2.2: the sender has taken the last four bytes away.
        let outcome = self.feed(payload, bytes_max, message).and_then(|()| self.feed(&TAIL, bytes_max, message));
        if !takeover || outcome.is_err() {
            self.stream.reset(false);
        }
        outcome.map_err(|error| match error {
            ProtocolError::MessageTooLarge { bytes, limit } if bytes_max < message_bytes_max => {
                ProtocolError::InflatesTooMuch { bytes, limit, compressed: payload.len() }
            }
            error => error,
        })
    }

    /// Inflates one piece of a message, all of it.
    fn feed(&mut self, mut piece: &[u8], bytes_max: usize, message: &mut Vec<u8>) -> Result<(), ProtocolError> {
        loop {
            if message.len() > bytes_max {
                return Err(ProtocolError::MessageTooLarge { bytes: message.len() as u64, limit: bytes_max });
            }
            if message.len() == message.capacity() {
                let more = message.len().max(4 * piece.len()).max(ROOM_MIN);
                message.reserve_exact(more.min(bytes_max + 1 - message.len()));
            }
            let before = (self.stream.total_in(), message.len());
            let status = self
                .stream
                .decompress_vec(piece, message, FlushDecompress::Sync)
                .map_err(|_| ProtocolError::NotDeflate)?;
            piece = &piece[(self.stream.total_in() - before.0) as usize..];
            match status {
                // A sender may end its block for good (§7.2.3.4); what follows begins anew.
                Status::StreamEnd => self.stream.reset(false),
                Status::Ok | Status::BufError if message.len() < message.capacity() && piece.is_empty() => {
                    return Ok(());
                }
                Status::Ok | Status::BufError => {
                    let stuck = message.len() == before.1 && message.len() < message.capacity();
                    if stuck {
                        return Err(ProtocolError::NotDeflate);
                    }
                }
            }
        }
    }
}

/// Compresses messages, each by itself.
#[derive(Debug)]
pub struct Deflater {
    level: Compression,
    /// One for each window that somebody asked for.
    streams: [Option<Compress>; WINDOWS],
}

impl Deflater {
    /// Compresses with this level, 1 (fast) to 9 (small).
    pub fn new(level: u32) -> Self {
        Self { level: Compression::new(level), streams: Default::default() }
    }

    /// Appends the compressed form of a payload, if it is shorter; else nothing.
    pub fn deflate(&mut self, payload: &[u8], window_bits: u8, out: &mut Vec<u8>) -> bool {
        debug_assert!((WINDOW_BITS_MIN..=WINDOW_BITS_MAX).contains(&window_bits));
        let stream = self.streams[usize::from(window_bits - WINDOW_BITS_MIN)]
            .get_or_insert_with(|| Compress::new_with_window_bits(self.level, false, window_bits));
        stream.reset();
        let from = out.len();
        // With room for a shorter form only: what does not fit is sent as it is.
        out.reserve_exact(payload.len() + TAIL.len());
        let is_flushed =
            matches!(stream.compress_vec(payload, out, FlushCompress::Sync), Ok(Status::Ok)) && out.ends_with(&TAIL);
        // One that was cut off fills the room, and is as long as that.
        let fits = is_flushed && out.len() - from < payload.len() + TAIL.len();
        out.truncate(if fits { out.len() - TAIL.len() } else { from });
        fits
    }
}

/// The end of every flushed DEFLATE stream, which is not sent (§7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// What an inflater holds, in bytes, whatever its message: the window, the tables of its codes, its state.
pub const INFLATER_BYTES: usize = 48 * 1024;
/// Room for the first inflated bytes.
const ROOM_MIN: usize = 256;
/// The ratio is not judged up to here: short messages may be very regular, and cost little.
const RATIO_EXEMPT_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: InflateLimits = InflateLimits { message_bytes_max: 1 << 20, ratio_max: 200 };

    /// A compressed payload, and what it inflates to.
    type Case<'a> = (&'a [u8], Result<&'a [u8], ProtocolError>);

    /// The payloads come one after the other on one connection.
    #[track_caller]
    fn check(takeover: bool, payloads: &[Case<'_>]) {
        let (mut inflater, mut message) = (Inflater::default(), b"b".to_vec());
        for &(payload, expected) in payloads {
            let inflated = inflater.inflate(payload, takeover, &LIMITS, &mut message);
            assert_eq!(inflated.map(|()| &message[..]), expected);
            assert!(message.capacity() <= 2 * ROOM_MIN, "{} for {}", message.capacity(), payload.len());
        }
    }

    #[test]
    fn examples_of_the_rfc() {
        let hello: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
        check(false, &[(hello, Ok(b"Hello")), (hello, Ok(b"Hello"))]);
        check(true, &[(hello, Ok(b"Hello")), (b"\xf2\x00\x11\x00\x00", Ok(b"Hello"))]);
        check(false, &[(hello, Ok(b"Hello")), (b"\xf2\x00\x11\x00\x00", Err(ProtocolError::NotDeflate))]);
        check(false, &[(b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", Ok(b"Hello"))]);
        check(false, &[(b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", Ok(b"Hello")), (hello, Ok(b"Hello"))]);
        check(false, &[(b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", Ok(b"Hello"))]);
        check(false, &[(b"\xf3\x48\xcd\xc9\xc9\x07\x00", Ok(b"Hello")), (hello, Ok(b"Hello"))]);
        check(false, &[(b"\x02\x00", Ok(b"")), (b"", Ok(b""))]);
    }

    #[test]
    fn what_is_not_deflate_is_an_error_and_forgotten() {
        let hello: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
        for takeover in [false, true] {
            check(takeover, &[(b"\x07\xff", Err(ProtocolError::NotDeflate)), (hello, Ok(b"Hello"))]);
        }
        assert_eq!(ProtocolError::NotDeflate.close_code(), 1007);
    }

    #[test]
    fn bombs_are_stopped_while_they_inflate() {
        let bomb = |bytes| {
            let mut out = Vec::new();
            assert!(Deflater::new(9).deflate(&vec![0; bytes], 15, &mut out));
            out
        };
        let inflate = |bytes: usize, message_bytes_max, ratio_max| {
            let (mut inflater, mut message) = (Inflater::default(), Vec::new());
            let limits = InflateLimits { message_bytes_max, ratio_max };
            let outcome = inflater.inflate(&bomb(bytes), false, &limits, &mut message);
            assert!(message.capacity() <= message_bytes_max + 1, "{}", message.capacity());
            outcome.map(|()| message.len()).map_err(|error| error.close_code())
        };
        assert_eq!(inflate(100_000, 100_000, 2_000), Ok(100_000));
        assert_eq!(inflate(100_001, 100_000, 2_000), Err(1009));
        assert_eq!(inflate(10_000_000, 100_000, 2_000), Err(1009));
        assert_eq!(inflate(10_000_000, 1 << 30, 200), Err(1009), "the ratio");
        assert_eq!(inflate(64 * 1024, 1 << 20, 1), Ok(64 * 1024), "short messages may be regular");
        // Which limit it was is told, since nobody can see it in the message.
        let told = |message_bytes_max, ratio_max| {
            let limits = InflateLimits { message_bytes_max, ratio_max };
            Inflater::default().inflate(&bomb(100_000), false, &limits, &mut Vec::new()).unwrap_err().to_string()
        };
        let by_ratio = told(1 << 20, 1);
        assert!(by_ratio.ends_with(" compressed bytes inflate to 65537 or more, limit 65536"), "{by_ratio}");
        assert_eq!(told(50_000, 2_000), "message of 50001 bytes or more, limit 50000");
    }

    /// What comes again after as many bytes as a window has is found in it, and in no smaller one. No inflater would tell that
    /// a form looks back too far: zlib-rs gives each the largest window.
    #[test]
    fn a_window_is_used_in_its_full_width() {
        let mut seed = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .take(1 << WINDOW_BITS_MAX)
        .collect();
        let mut deflater = Deflater::new(9);
        for bits in WINDOW_BITS_MIN + 1..=WINDOW_BITS_MAX {
            let once = &noise[..(1 << bits) - 300]; // zlib looks back 262 bytes less
            let (twice, mut form, mut message) = ([once, once].concat(), Vec::new(), Vec::new());
            assert!(!deflater.deflate(&twice, bits - 1, &mut form), "{bits} bits");
            assert!(deflater.deflate(&twice, bits, &mut form) && form.len() < once.len() * 11 / 10, "{bits} bits");
            Inflater::default().inflate(&form, false, &LIMITS, &mut message).unwrap();
            assert!(message == twice, "{bits} bits");
        }
    }

    #[test]
    fn what_does_not_get_shorter_is_left_alone() {
        let mut deflater = Deflater::new(3);
        for payload in [&b""[..], b"a", b"0123456789abcdefghijklmnop", b"\x00\x00\xff\xff"] {
            for room in [0, 100] {
                let mut out = b"before".to_vec();
                out.reserve_exact(room);
                assert!(!deflater.deflate(payload, 15, &mut out));
                assert_eq!(out, b"before");
            }
        }
        // Wherever it is put, and however little shorter it is.
        for count in 1..20 {
            let mut out = vec![0; 1_000];
            let is_shorter = deflater.deflate(&vec![b'a'; count], 15, &mut out);
            assert!(
                out.len() < 1_000 + count && is_shorter == (out.len() > 1_000),
                "{} for {count}",
                out.len() - 1_000
            );
            assert!(is_shorter || count < 10);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn there_and_back(
            words in proptest::collection::vec("[a-d]{1,8}", 0..2_000),
            noise in proptest::collection::vec(any::<u8>(), 0..3_000),
            bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX,
            level in 1_u32..=9,
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(level), Inflater::default());
            let text = words.concat().into_bytes();
            for payload in [&text, &noise, &[&text[..], &noise].concat(), &text] {
                let mut out = b"before".to_vec();
                if deflater.deflate(payload, bits, &mut out) {
                    prop_assert!(out.len() < payload.len() + 6 && !out.ends_with(&TAIL));
                    let mut message = Vec::new();
                    inflater.inflate(&out[6..], false, &LIMITS, &mut message).unwrap();
                    prop_assert_eq!(&message, payload);
                } else {
                    prop_assert_eq!(&out[..], b"before");
                }
            }
            let shrinks = deflater.deflate(&text, bits, &mut Vec::new());
            prop_assert!(shrinks || text.len() < 200);
        }

        #[test]
        fn anything_is_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), takeover: bool) {
            let mut inflater = Inflater::default();
            let limits = InflateLimits { message_bytes_max: 1_000, ratio_max: 200 };
            for half in [&bytes[..], &bytes[bytes.len() / 2..]] {
                let mut message = Vec::new();
                if inflater.inflate(half, takeover, &limits, &mut message).is_ok() {
                    prop_assert!(message.len() <= 1_000);
                }
                prop_assert!(message.capacity() <= 1_001);
            }
        }
    }
}
