//! Figures in rows and columns, as Markdown.

use std::fmt::Write as _;
use std::io::{self, Write};

/// A table that is printed row by row.
pub struct Table {
    text: String,
}

impl Table {
    /// A table with these columns.
    pub fn new(name: &str, columns: &[&str]) -> Self {
        let mut text = format!("| {name} |");
        columns.iter().for_each(|column| write!(text, " {column} |").expect("memory"));
        text += "\n|---|";
        text += &"--:|".repeat(columns.len());
        text += "\n";
        Self { text }
    }

    /// A row of figures with so many decimals; what is not a number is a dash.
    pub fn row(&mut self, name: &str, figures: &[f64], decimals: usize) {
        write!(self.text, "| {name} |").expect("memory");
        for figure in figures {
            match figure.is_finite() {
                true => write!(self.text, " {figure:.decimals$} |").expect("memory"),
                false => self.text += " – |",
            }
        }
        self.text += "\n";
    }

    /// A row that ends in words.
    pub fn row_with_words(&mut self, name: &str, figures: &[f64], decimals: usize, words: &str) {
        self.row(name, figures, decimals);
        self.text.pop();
        writeln!(self.text, " {words} |").expect("memory");
    }

    /// Writes the table to standard output.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn print(&self) -> io::Result<()> {
        writeln!(io::stdout(), "{}", self.text)
    }
}

/// The middle of some figures.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => figures[len / 2],
        len => (figures[len / 2 - 1] + figures[len / 2]) / 2.0,
    }
}
