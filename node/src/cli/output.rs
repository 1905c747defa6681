//! Standard output and standard error.
//!
//! `println!` panics when its reader has gone away; here that ends the command quietly.

use std::io::{self, Write};

use hyperfabric_node::api::{ApiError, ErrorBody, ErrorCode};
use serde::Serialize;

use super::Failure;

/// Where answers go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    /// Whether answers are JSON.
    pub(crate) json: bool,
}

impl Out {
    /// Prints an answer: as JSON, or as the text that `text` makes of it.
    pub(crate) fn answer<T: Serialize>(
        self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            self.object(answer)
        } else {
            self.text(&text(answer))
        }
    }

    /// Prints one compact JSON object on a line.
    pub(crate) fn object(self, answer: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(answer).map_err(|error| ApiError::of(ErrorCode::Failed, &error))?;
        self.text(&line)
    }

    /// Prints text, with a line end after it unless it has one or is empty.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        let mut stdout = io::stdout().lock();
        let written = write!(stdout, "{text}{end}").and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Error(ApiError::of(ErrorCode::Failed, &error)),
        })
    }

    /// Says something that is not part of the answer.
    pub(crate) fn note(self, text: &str) {
        // Nobody is left to be told that nobody listens.
        drop(writeln!(io::stderr(), "{text}"));
    }

    /// Says why the command failed.
    pub(crate) fn error(self, error: &ApiError) {
        self.note(&format!("error: {error}"));
        if let Some(hint) = &error.hint {
            self.note(&format!(" hint: {hint}"));
        }
        if self.json {
            drop(self.object(&ErrorBody { error: error.clone() }));
        }
    }
}

/// Lays out rows below their headings, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    let headings = headings.map(str::to_owned);
    for row in std::iter::once(&headings).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Lays out names and values below each other.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    fields
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

/// Shows a value that may be missing.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_have_no_trailing_blanks() {
        let rows = [
            ["a".to_owned(), "x".to_owned()],
            ["longer".to_owned(), String::new()],
        ];
        assert_eq!(table(["ID", "N"], &rows), "ID      N\na       x\nlonger\n");
        assert_eq!(
            fields(&[("name", "a".to_owned()), ("id", "b".to_owned())]),
            "name  a\nid    b\n"
        );
    }
}
