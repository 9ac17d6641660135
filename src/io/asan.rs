//! Tells AddressSanitizer which memory the kernel owns (`tests/run asan`, `--cfg tidewheel_asan`); without it, nothing.
//! Law: what is poisoned is memory of this crate's own that nobody may look at until it is given back here.

#![cfg_attr(tidewheel_asan, allow(unsafe_code, reason = "calls into the sanitizer's runtime"))]

#[cfg(tidewheel_asan)]
unsafe extern "C" {
    /// Every load and store in the range is an error from here on; at its ends, whole 8 bytes only.
    fn __asan_poison_memory_region(start: *const u8, bytes: usize);
    /// The range may be used again, to the byte.
    fn __asan_unpoison_memory_region(start: *const u8, bytes: usize);
}

/// The kernel has these bytes: to touch them is a mistake.
#[inline]
pub(super) fn give(start: *const u8, bytes: usize) {
    #[cfg(tidewheel_asan)]
    // SAFETY: the runtime only marks the range in its shadow memory; callers name memory that they own.
    unsafe {
        __asan_poison_memory_region(start, bytes)
    };
    let _ = (start, bytes);
}

/// The kernel is done with these bytes.
#[inline]
pub(super) fn take_back(start: *const u8, bytes: usize) {
    #[cfg(tidewheel_asan)]
    // SAFETY: as above; they are memory of this process that the caller may use from here on.
    unsafe {
        __asan_unpoison_memory_region(start, bytes)
    };
    let _ = (start, bytes);
}

#[cfg(all(test, tidewheel_asan))]
mod tests {
    use crate::io::palette::{Palette, SharedFrame};
    use crate::io::recv_ring::RecvRing;

    unsafe extern "C" {
        /// Not 0 if the byte may not be touched.
        safe fn __asan_address_is_poisoned(byte: *const u8) -> i32;
    }

    fn is_given(byte: *const u8) -> bool {
        __asan_address_is_poisoned(byte) != 0
    }

    #[test]
    fn a_receive_buffer_is_ours_while_it_is_lent_and_as_far_as_it_is_filled() {
        let ring = RecvRing::new(2, 64).unwrap();
        let lent = ring.lend(1, 13, &mut Default::default());
        let bytes = lent.as_ptr_range();
        assert!(!is_given(bytes.start) && !is_given(bytes.end.wrapping_sub(1)));
        assert!(is_given(bytes.end), "what the kernel did not fill");
        assert!(is_given(bytes.start.wrapping_sub(1)), "the buffer before");
        drop(lent);
        assert!(is_given(bytes.start));
    }

    #[test]
    fn a_private_frame_is_the_kernels_until_its_last_send_is_over() {
        let mut palette = Palette::default();
        let key = palette.open();
        palette.append(key, |out| out.extend_from_slice(b"reply"));
        let byte = palette.bytes(key).as_ptr();
        for _ in 0..2 {
            palette.lend(key);
            palette.give(key);
        }
        assert!(is_given(byte));
        palette.take_back(key);
        assert!(is_given(byte), "another send of it goes on");
        palette.take_back(key);
        assert!(!is_given(byte));
        let shared = palette.share(SharedFrame::new(b"abc".to_vec()), 1);
        palette.lend(shared);
        palette.give(shared);
        assert_eq!(palette.bytes(shared), b"abc", "other shards look at it");
    }
}
