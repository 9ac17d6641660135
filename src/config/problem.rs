//! What is wrong with a configuration, and where.
//! Law: a problem names its place, its key and what to write instead, and never quotes a secret.

use std::fmt;
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of a file, or of a text without a name.
    Line {
        /// The file.
        file: Option<Arc<str>>,
        /// From 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// A flag of the command line, as it was typed.
    Flag(String),
    /// Nowhere: it is a default, or more than one key is meant.
    Unwritten,
}

/// One thing that is wrong, or odd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The path of the key; empty if it is not about one.
    pub key: String,
    /// What, and the remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line { file: Some(file), line } => write!(f, "{file}:{line}: ")?,
            Place::Line { file: None, line } => write!(f, "line {line}: ")?,
            // Its name says the key.
            Place::Variable(name) => return write!(f, "{name}: {}", self.message),
            Place::Flag(flag) => write!(f, "{flag}: ")?,
            Place::Unwritten => {}
        }
        match self.key.as_str() {
            "" => f.write_str(&self.message),
            key => write!(f, "{key}: {}", self.message),
        }
    }
}

/// Everything that is wrong with a configuration, in the order of its lines, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// The key most like `wrong`, as a whole path or as its last part in whatever section, if any is like it at all.
pub(super) fn nearest<'a>(wrong: &str, keys: &[&'a str]) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let distances = keys.iter().map(|&key| {
        let whole = edit_distance(&wrong.replace('.', "_"), &key.replace('.', "_"));
        // Who writes half of a name means it.
        let half = if key.starts_with(wrong) && last(wrong).len() >= 3 { 1 } else { usize::MAX };
        (edit_distance(&last(wrong), &last(key)).min(whole).min(half), whole, key)
    });
    let (distance, _, key) = distances.min()?;
    (distance <= last(wrong).len() / 2).then_some(key)
}

/// Insertions, deletions and replacements that make `b` of `a` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
