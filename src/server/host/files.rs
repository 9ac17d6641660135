//! Values in files below a root: the machine's own, or a tree that a test made.
//! Law: what cannot be read or understood says which file and why; nothing is guessed in its place.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A value, or why it is not known.
pub type Fact<T> = Result<T, Unknown>;

/// Why a value is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// There is no such file.
    #[error("{0} is not there")]
    Absent(String),
    /// The file cannot be read, or does not say what it should.
    #[error("{path}: {why}")]
    Unreadable {
        /// Which file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The files below a root. Paths begin with `/`, as they do on the machine.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The file as it is.
    pub(super) fn bytes(&self, path: &str) -> Fact<Vec<u8>> {
        fs::read(self.place(path)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Unknown::Absent(path.to_owned()),
            _ => unreadable(path, error.to_string()),
        })
    }

    /// The file's text, without white space around it.
    pub(super) fn text(&self, path: &str) -> Fact<String> {
        let text = String::from_utf8(self.bytes(path)?).map_err(|_| unreadable(path, "is no text"))?;
        Ok(text.trim().to_owned())
    }

    /// The one number that the file holds.
    pub(super) fn number(&self, path: &str) -> Fact<u64> {
        parse(path, &self.text(path)?)
    }

    /// The `N` numbers that the file holds.
    pub(super) fn numbers<const N: usize>(&self, path: &str) -> Fact<[u64; N]> {
        let text = self.text(path)?;
        let numbers = text.split_whitespace().map(|word| parse(path, word)).collect::<Fact<Vec<u64>>>()?;
        let found = numbers.len();
        numbers.try_into().map_err(|_| unreadable(path, format!("{found} numbers instead of {N}")))
    }

    /// What stands behind `name` at the begin of one of the file's lines.
    pub(super) fn field(&self, path: &str, name: &str) -> Fact<String> {
        let text = self.text(path)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.map(|value| value.trim().to_owned()).ok_or_else(|| unreadable(path, format!("has no `{name}`")))
    }

    /// The number behind `name`, in bytes where the file says kB.
    pub(super) fn amount(&self, path: &str, name: &str) -> Fact<u64> {
        let text = self.field(path, name)?;
        match text.strip_suffix("kB") {
            Some(kib) => Ok(parse::<u64>(path, kib.trim())?.saturating_mul(1024)),
            None => parse(path, &text),
        }
    }

    /// The names in a directory, sorted.
    pub(super) fn names(&self, path: &str) -> Fact<Vec<String>> {
        let entries = fs::read_dir(self.place(path)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Unknown::Absent(path.to_owned()),
            _ => unreadable(path, error.to_string()),
        })?;
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Whether there is something of this name.
    pub(super) fn has(&self, path: &str) -> bool {
        self.place(path).exists()
    }
}

/// Reads `text`, which stands in the file at `path`.
pub(super) fn parse<T: FromStr>(path: &str, text: &str) -> Fact<T> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(SHOWN_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        unreadable(path, format!("`{shown}` is no number"))
    })
}

pub(super) fn unreadable(path: &str, why: impl Into<String>) -> Unknown {
    Unknown::Unreadable { path: path.to_owned(), why: why.into() }
}

/// As much of a file's text as a person needs to see what it is.
const SHOWN_CHARS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    #[test]
    fn a_number_is_the_whole_file() {
        #[track_caller]
        fn check(text: &str, expected: Result<u64, &str>) {
            let number = Tree::empty().with("/n", text).files().number("/n");
            assert_eq!(number.map_err(|unknown| unknown.to_string()), expected.map_err(str::to_owned));
        }
        check("4096\n", Ok(4096));
        check("18446744073709551615", Ok(u64::MAX));
        check("", Err("/n: `` is no number"));
        check("-1", Err("/n: `-1` is no number"));
        check("1 2", Err("/n: `1 2` is no number"));
        check("18446744073709551616", Err("/n: `18446744073709551616` is no number"));
        check(&"x\u{1b}".repeat(50), Err(&format!("/n: `{}` is no number", "x ".repeat(20))));
    }

    #[test]
    fn what_is_not_there_is_told_from_what_cannot_be_read() {
        let tree = Tree::empty().with("/a/b", "1");
        assert_eq!(tree.files().number("/a/c"), Err(Unknown::Absent("/a/c".into())));
        assert!(matches!(tree.files().number("/a"), Err(Unknown::Unreadable { .. })));
        assert_eq!(tree.files().names("/a"), Ok(vec!["b".to_owned()]));
        assert_eq!(tree.files().names("/c"), Err(Unknown::Absent("/c".into())));
    }

    #[test]
    fn fields_and_lists() {
        let tree = Tree::empty().with("/f", "MemTotal:  12 kB\nSeccomp:\t2\n").with("/l", "1\t2  3\n");
        assert_eq!(tree.files().amount("/f", "MemTotal:"), Ok(12 * 1024));
        assert_eq!(tree.files().amount("/f", "Seccomp:"), Ok(2));
        assert_eq!(tree.files().field("/f", "Swap:").unwrap_err().to_string(), "/f: has no `Swap:`");
        assert_eq!(tree.files().numbers("/l"), Ok([1, 2, 3]));
        assert_eq!(tree.files().numbers::<2>("/l").unwrap_err().to_string(), "/l: 3 numbers instead of 2");
    }
}
