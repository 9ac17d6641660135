//! JSON at the level of bytes: one pass that validates a document and says where its parts are.
//! Law: no recursion, no allocation, and nothing past a fault is read; what is accepted is RFC 8259 without lone
//! surrogates, at most [`DEPTH_MAX`] levels deep.

use std::fmt;
use std::ops::Range;

/// Deepest nesting of objects and arrays in a message, the message itself being level 1. Below the 127 levels at which
/// readers built on `serde_json` give up, so that what is forwarded can be read, also where it travels in a list.
pub const DEPTH_MAX: u32 = 120;

/// Where in a document something is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// The span as an index.
    pub(super) fn range(self) -> Range<usize> {
        self.start..self.end
    }

    /// The same bytes, counted from `start`.
    pub(super) fn since(self, start: usize) -> Self {
        Self { start: self.start - start, end: self.end - start }
    }
}

/// One JSON value: its bytes, with the quotes if it is a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub span: Span,
    /// It is a string and a backslash occurs in it.
    pub is_escaped: bool,
}

/// Why a document is not JSON, or not JSON this server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Offset of the byte at fault in the message; the message's length when it ended early.
    pub at: usize,
    /// What was expected there.
    pub expected: Expected,
}

/// What a document lacked where it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each is in `Display`")]
pub enum Expected {
    Value,
    Key,
    Colon,
    CommaOrBrace,
    CommaOrBracket,
    End,
    Quote,
    Escape,
    HexDigits,
    SurrogatePair,
    NoControlCharacter,
    Digit,
    Shallower,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = match self.expected {
            Expected::Value => "expected a value",
            Expected::Key => "expected a member name in quotes",
            Expected::Colon => "expected `:`",
            Expected::CommaOrBrace => "expected `,` or `}`",
            Expected::CommaOrBracket => "expected `,` or `]`",
            Expected::End => "expected nothing after the message",
            Expected::Quote => "the string is not closed",
            Expected::Escape => "unknown escape",
            Expected::HexDigits => "expected four hex digits",
            Expected::SurrogatePair => "lone surrogate",
            Expected::NoControlCharacter => "control character in a string",
            Expected::Digit => "expected a digit",
            Expected::Shallower => return write!(f, "nested deeper than {DEPTH_MAX} levels at byte {}", self.at),
        };
        write!(f, "not JSON at byte {}: {expected}", self.at)
    }
}

/// Checks that `bytes` are one JSON value that may travel in a message.
///
/// # Errors
/// The first fault; its place is counted in `bytes`.
pub fn check_json(bytes: &[u8]) -> Result<(), Fault> {
    // A message wraps what it carries in two objects.
    let mut scanner = Scanner { bytes, at: 0, depth: 2 };
    scanner.value()?;
    scanner.end()
}

/// Reads a document from front to back.
pub(super) struct Scanner<'b> {
    bytes: &'b [u8],
    at: usize,
    /// Containers entered and not left yet.
    depth: u32,
}

impl<'b> Scanner<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// The next byte that is not white space, still to be read.
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                byte => return byte.copied(),
            }
        }
    }

    /// Reads an object and hands the key of each member to `member`, which has to read its value.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Value) -> Result<(), Fault>,
    ) -> Result<Span, Fault> {
        debug_assert_eq!(self.bytes[self.at], b'{');
        let start = self.at;
        self.at += 1;
        self.depth += 1; // the callers' two levels cannot reach the bound
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                let key = self.key()?;
                member(self, key)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break self.at += 1,
                    _ => return self.fault(Expected::CommaOrBrace),
                }
            }
        }
        self.depth -= 1;
        Ok(Span { start, end: self.at })
    }

    /// Reads one value of any kind and all that is in it.
    pub(super) fn value(&mut self) -> Result<Value, Fault> {
        let first = self.peek();
        let start = self.at;
        if first == Some(b'"') {
            return self.string();
        }
        // One bit for each open container, the innermost lowest: 1 is an object, 0 an array.
        let mut objects = 0_u128;
        let mut open = 0;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(byte @ (b'{' | b'[')) => {
                    if self.depth + open == DEPTH_MAX {
                        return self.fault(Expected::Shallower);
                    }
                    open += 1;
                    self.at += 1;
                    let is_object = byte == b'{';
                    objects = objects << 1 | u128::from(is_object);
                    match (is_object, self.peek()) {
                        (true, Some(b'}')) | (false, Some(b']')) => {} // left below
                        (true, _) => {
                            self.key()?;
                            continue;
                        }
                        (false, _) => continue,
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return self.fault(Expected::Value),
            }
            // A value ended, or an empty container is about to: leave what ends here, then go on to the next value.
            loop {
                if open == 0 {
                    return Ok(Value { span: Span { start, end: self.at }, is_escaped: false });
                }
                let in_object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if in_object {
                            self.key()?;
                        }
                        break;
                    }
                    Some(b'}') if in_object => self.at += 1,
                    Some(b']') if !in_object => self.at += 1,
                    _ if in_object => return self.fault(Expected::CommaOrBrace),
                    _ => return self.fault(Expected::CommaOrBracket),
                }
                open -= 1;
                objects >>= 1;
            }
        }
    }

    /// Nothing but white space may be left.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        if self.peek().is_none() { Ok(()) } else { self.fault(Expected::End) }
    }

    fn key(&mut self) -> Result<Value, Fault> {
        if self.peek() != Some(b'"') {
            return self.fault(Expected::Key);
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return self.fault(Expected::Colon);
        }
        self.at += 1;
        Ok(key)
    }

    fn string(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        self.at += 1;
        let mut is_escaped = false;
        loop {
            self.at += plain_length(&self.bytes[self.at..]);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Value { span: Span { start, end: self.at }, is_escaped });
                }
                Some(b'\\') => {
                    is_escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.fault(Expected::NoControlCharacter),
                None => return self.fault(Expected::Quote),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => {
                let unit = self.code_unit()?;
                let is_character = match unit {
                    0xd800..=0xdbff => {
                        self.bytes[self.at..].starts_with(b"\\u") && matches!(self.code_unit()?, 0xdc00..=0xdfff)
                    }
                    0xdc00..=0xdfff => false,
                    _ => true,
                };
                if is_character { Ok(()) } else { self.fault(Expected::SurrogatePair) }
            }
            _ => self.fault(Expected::Escape),
        }
    }

    /// Reads `\uXXXX`.
    fn code_unit(&mut self) -> Result<u16, Fault> {
        match hex_unit(&self.bytes[self.at + 2..]) {
            Some(unit) => {
                self.at += 6;
                Ok(unit)
            }
            None => self.fault(Expected::HexDigits),
        }
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1; // a second digit is then no part of the number, and a fault for the caller
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.bytes.get(self.at) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { self.fault(Expected::Digit) }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Fault> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.fault(Expected::Value);
        }
        self.at += word.len();
        Ok(())
    }

    fn fault<T>(&self, expected: Expected) -> Result<T, Fault> {
        Err(Fault { at: self.at, expected })
    }
}

/// Replaces the escapes of a string's inside that a [`Scanner`] accepted, in place, and returns its new length, which
/// is never larger. The bytes after it are left over.
pub(super) fn unescape(text: &mut [u8]) -> usize {
    let (mut read, mut written) = (0, 0);
    while let Some(plain) = memchr::memchr(b'\\', &text[read..]) {
        text.copy_within(read..read + plain, written);
        read += plain;
        written += plain;
        let character = match text[read + 1] {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let pair = [hex_unit(&text[read + 2..]), text.get(read + 8..).and_then(hex_unit)];
                let mut characters = char::decode_utf16(pair.into_iter().flatten());
                let character = characters.next().and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER);
                read += 6 * character.len_utf16() - 2;
                character
            }
            byte => char::from(byte), // one of `"`, `\` and `/`
        };
        read += 2;
        written += character.encode_utf8(&mut text[written..]).len();
    }
    text.copy_within(read.., written);
    written + text.len() - read
}

/// Length of the front of `bytes` that can stand in a JSON string as it is.
pub(super) fn plain_length(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let found = special_bytes(u64::from_le_bytes(*word));
        if found != 0 {
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let plain = rest.iter().take_while(|byte| !matches!(byte, 0..0x20 | b'"' | b'\\')).count();
    words.len() * 8 + plain
}

/// Marks the top bit of each byte of `word` that is a quote, a backslash or a control character. Bytes above the first
/// such byte may be marked wrongly, by the borrow.
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = ONES << 7;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (control | (quote.wrapping_sub(ONES) & !quote) | (backslash.wrapping_sub(ONES) & !backslash)) & TOPS
}

fn hex_unit(digits: &[u8]) -> Option<u16> {
    digits.get(..4)?.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)? as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn validate(text: &[u8]) -> Result<(), Fault> {
        let mut scanner = Scanner::new(text);
        scanner.value()?;
        scanner.end()
    }

    /// Whether `text` is accepted; the second opinion is `serde_json`'s.
    #[track_caller]
    fn check(text: &str, expected: Result<(), (usize, Expected)>) {
        assert_eq!(validate(text.as_bytes()).map_err(|fault| (fault.at, fault.expected)), expected, "{text}");
        let is_stricter = matches!(expected, Err((_, Expected::SurrogatePair | Expected::Shallower)));
        assert!(is_stricter || expected.is_ok() == serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
    }

    #[test]
    fn grammar() {
        for text in ["0", "-0", "10", "-1.5e+7", "1E9", "0.0", "1e999", "123456789012345678901234567890", "true"] {
            check(text, Ok(()));
        }
        for text in [" [ ] ", "{}", "[[],{},\"\"]", r#"{"a":{"b":[1,{"c":null}]},"a":2}"#, "\t\r\n[1 , 2]"] {
            check(text, Ok(()));
        }
        check(r#""\" \\ \/ \b \f \n \r \t \u00e9 \ud83d\ude00""#, Ok(()));
        check("", Err((0, Expected::Value)));
        check("nul", Err((0, Expected::Value)));
        check("01", Err((1, Expected::End)));
        check("-", Err((1, Expected::Digit)));
        check("1.", Err((2, Expected::Digit)));
        check("1e+", Err((3, Expected::Digit)));
        check(".5", Err((0, Expected::Value)));
        check("+1", Err((0, Expected::Value)));
        check("NaN", Err((0, Expected::Value)));
        check("[1,]", Err((3, Expected::Value)));
        check("[1 2]", Err((3, Expected::CommaOrBracket)));
        check("[1}", Err((2, Expected::CommaOrBracket)));
        check("{\"a\":1]", Err((6, Expected::CommaOrBrace)));
        check("{\"a\":1,}", Err((7, Expected::Key)));
        check("{\"a\" 1}", Err((5, Expected::Colon)));
        check("{a:1}", Err((1, Expected::Key)));
        check("{", Err((1, Expected::Key)));
        check("[", Err((1, Expected::Value)));
        check("[] []", Err((3, Expected::End)));
        check("\"", Err((1, Expected::Quote)));
        check("\"\n\"", Err((1, Expected::NoControlCharacter)));
        check(r#""\x""#, Err((1, Expected::Escape)));
        check(r#""\u12g4""#, Err((1, Expected::HexDigits)));
        check(r#""\u+123""#, Err((1, Expected::HexDigits)));
        check(r#""\ud83d""#, Err((7, Expected::SurrogatePair)));
        check(r#""\ude00""#, Err((7, Expected::SurrogatePair)));
        check(r#""\ud83d\u0041""#, Err((13, Expected::SurrogatePair)));
    }

    #[test]
    fn depth_has_a_bound() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        check(&nested(DEPTH_MAX as usize), Ok(()));
        check(&nested(DEPTH_MAX as usize + 1), Err((DEPTH_MAX as usize, Expected::Shallower)));
        check(&"[".repeat(1 << 20), Err((DEPTH_MAX as usize, Expected::Shallower)));
        check(&"{\"a\":".repeat(1 << 18), Err((DEPTH_MAX as usize * 5, Expected::Shallower)));
        check(&format!("[{}]", "[],".repeat(1000) + "[]"), Ok(()));
    }

    /// JSON values as text, with the escapes and spaces a generator would not write.
    fn documents() -> impl Strategy<Value = String> {
        let string = r#"([ -!#-\[\]-~é😀]|\\["\\/bfnrt]|\\u(00[0-9a-f]{2}|d83d\\ude0[0-9])){0,12}"#;
        let leaf = prop_oneof![
            string.prop_map(|inside| format!("\"{inside}\"")),
            "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,4})?",
            "true|false|null",
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" ,"))),
                prop::collection::vec((string, inner), 0..6).prop_map(|members| {
                    let members: Vec<_> = members.iter().map(|(key, value)| format!("\"{key}\" :{value}")).collect();
                    format!("{{ {}\n}}", members.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in documents(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            prop_assert_eq!(validate(text.as_bytes()), Ok(()));
            let mut broken = text.into_bytes();
            let at = at.index(broken.len());
            broken[at] = byte;
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&broken).is_ok();
            match validate(&broken) {
                Err(Fault { expected: Expected::SurrogatePair, .. }) => {}
                // Whether the bytes are UTF-8 was settled before, and is none of the scanner's business.
                verdict if std::str::from_utf8(&broken).is_ok() => prop_assert_eq!(verdict.is_ok(), is_json),
                _ => {}
            }
        }

        #[test]
        fn unescapes_like_serde_json(text in any::<String>(), all in any::<bool>()) {
            let escaped = if all {
                text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()
            } else {
                let quoted = serde_json::to_string(&text).unwrap();
                quoted[1..quoted.len() - 1].to_owned()
            };
            prop_assert_eq!(validate(format!("\"{escaped}\"").as_bytes()), Ok(()));
            let mut bytes = escaped.into_bytes();
            let length = unescape(&mut bytes);
            prop_assert_eq!(&bytes[..length], text.as_bytes());
        }

        #[test]
        fn finds_the_first_special_byte(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let naive = bytes.iter().position(|byte| *byte < 0x20 || [b'"', b'\\'].contains(byte));
            prop_assert_eq!(plain_length(&bytes), naive.unwrap_or(bytes.len()));
        }
    }
}
