//! Panics that end where they happened.
//! Law: whatever code that panicked was in the middle of is thrown away by whoever ran it, or could not be changed by it, so
//! nothing half changed is left behind.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code that may panic.
///
/// # Errors
/// It panicked; what with.
pub fn contain<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(describe)
}

/// Drops a user's value whose destructor might panic.
pub fn drop_quietly<T>(value: T) {
    let _ = contain(move || drop(value)); // the value is gone either way
}

/// What a panic said. What it was thrown with is a user's value too, and so is what its destructor throws: that one is
/// leaked.
fn describe(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned();
    if let Err(another) = catch_unwind(AssertUnwindSafe(move || drop(panic))) {
        std::mem::forget(another);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_says_what_it_was_thrown_with() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                std::panic::panic_any(Bomb); // and again, if anybody dropped that one
            }
        }
        assert_eq!(contain(|| 7), Ok(7));
        assert_eq!(contain(|| panic!("a text")), Err::<(), _>("a text".into()));
        assert_eq!(contain(|| panic!("a {}", "format")), Err::<(), _>("a format".into()));
        assert_eq!(contain(|| std::panic::panic_any(Bomb)), Err::<(), _>("no message".into()));
        drop_quietly(Bomb);
    }
}
