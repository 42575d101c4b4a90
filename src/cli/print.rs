//! What goes to standard output.

use std::io::{self, Write};

use super::Failure;

/// Writes a line.
///
/// # Errors
/// When standard output is closed.
pub fn say(line: impl AsRef<str>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Rows under headings, columns as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|heading| heading.to_uppercase()).collect()] }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let row: Vec<String> = cells.into_iter().map(|cell| printable(&cell.into())).collect();
        debug_assert_eq!(row.len(), self.rows[0].len());
        self.rows.push(row);
    }

    /// Writes it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self) -> Result<(), Failure> {
        say(self.text())
    }

    /// It as text, without a line break behind.
    pub(super) fn text(&self) -> String {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// What others wrote must not move the reader's cursor or recolour the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["name", "status"]);
        table.row(["chat/1", "running"]);
        table.row(["a-longer-name\x1b[31m", "idle"]);
        assert_eq!(
            table.text(),
            "NAME                STATUS\nchat/1              running\na-longer-name\u{fffd}[31m  idle"
        );
    }
}
