//! Records in tables: MMBench's TSV with pictures in base64.

use super::{LAYOUTS, Loaded, ROTATIONS, Record, base64, choice, stem, text_of};
use crate::error::{Error, Result};
use crate::judge::{Sight, Skipped};
use omchat_model::picture::Picture;
use serde_json::{Map, json};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Rotations of one question have indices that differ by a multiple of this.
const ROTATION: u64 = 1_000_000;

type Row = HashMap<String, String>;

/// The indices of each question's rotations, those of rows that cannot be used among them.
type Turns = HashMap<u64, HashSet<u64>>;

/// Adds a file's records.
pub(super) fn read(file: &Path, out: &mut Loaded) -> Result<()> {
    let text = text_of(file)?;
    let mut lines = rows(&text).into_iter();
    let names = lines.next().unwrap_or_default();
    for name in ["index", "question", "A", "B", "answer", "image"] {
        if !names.iter().any(|known| known == name) {
            return Err(Error::format(file, format!("its first line names no column `{name}`"), LAYOUTS));
        }
    }
    let all: Vec<Row> = lines.map(|cells| names.iter().cloned().zip(cells).collect()).collect();
    let mut pictures = Pictures { rows: &all, known: HashMap::new() };
    let mut turns: Turns = HashMap::new();
    for index in all.iter().filter_map(|row| cell(row, "index")?.parse::<u64>().ok()) {
        turns.entry(index % ROTATION).or_default().insert(index);
    }
    for (number, row) in all.iter().enumerate() {
        match record(row, file, &turns, &mut pictures) {
            Ok(record) => out.records.push(record),
            Err(why) => out.bad.push(Skipped { what: format!("{}/row {}", stem(file), number + 2), why }),
        }
    }
    Ok(())
}

fn cell<'a>(row: &'a Row, name: &str) -> Option<&'a str> {
    row.get(name).map(|cell| cell.trim()).filter(|cell| !cell.is_empty() && *cell != "nan")
}

fn record(row: &Row, file: &Path, turns: &Turns, pictures: &mut Pictures) -> std::result::Result<Record, String> {
    let need = |column: &str| cell(row, column).ok_or_else(|| format!("its `{column}` is empty"));
    let index: u64 = need("index")?
        .parse()
        .map_err(|_| format!("its index `{}` is no number", need("index").unwrap_or_default()))?;
    let options = ('A'..='Z').map_while(|letter| cell(row, &letter.to_string())).map(str::to_owned).collect();
    let mut text = cell(row, "hint").map(|hint| format!("Hint: {hint}\n")).unwrap_or_default();
    text += need("question")?;
    let task = ["category", "l2-category"].iter().find_map(|column| cell(row, column)).unwrap_or("all");
    let (name, first) = (stem(file), index % ROTATION);
    // A rotation whose first order is not there stands alone.
    let group = turns.get(&first).filter(|group| group.contains(&first));
    let mut params = Map::new();
    if let Some(group) = group.filter(|group| group.len() > 1) {
        params.insert(ROTATIONS.into(), json!(group.len()));
    }
    Ok(Record {
        file: file.to_path_buf(),
        id: format!("{name}/{index}"),
        task: task.to_owned(),
        text,
        expected: choice(options, need("answer")?)?,
        sights: vec![Sight::Picture(pictures.of(need("image")?)?)],
        group: group.map(|_| format!("{name}/{first}")),
        params,
    })
}

/// Pictures of a table; a short cell names the row whose picture it shares.
struct Pictures<'a> {
    rows: &'a [Row],
    known: HashMap<String, Arc<Picture>>,
}

impl Pictures<'_> {
    fn of(&mut self, cell: &str) -> std::result::Result<Arc<Picture>, String> {
        if cell.len() > 64 {
            return decoded(cell);
        }
        if let Some(known) = self.known.get(cell) {
            return Ok(known.clone());
        }
        let row = self.rows.iter().find(|row| row.get("index").is_some_and(|index| index.trim() == cell));
        let text = row.and_then(|row| row.get("image")).filter(|text| text.len() > 64);
        let picture = decoded(text.ok_or_else(|| format!("its picture `{cell}` is that of no row"))?)?;
        self.known.insert(cell.to_owned(), picture.clone());
        Ok(picture)
    }
}

fn decoded(text: &str) -> std::result::Result<Arc<Picture>, String> {
    let bytes = base64::decode(text).ok_or("its picture is no base64")?;
    Picture::decode("picture", &bytes).map(Arc::new).map_err(|fault| fault.to_string())
}

/// Cells between tabs, rows between line ends; what stands in quotes may hold both, and a quote twice is one.
fn rows(text: &str) -> Vec<Vec<String>> {
    let (mut out, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut letters) = (false, text.chars().peekable());
    while let Some(c) = letters.next() {
        match c {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() => quoted = true,
            '\t' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                out.push(std::mem::take(&mut row));
            }
            c => cell.push(c),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        out.push(row);
    }
    out.retain(|row| row.len() > 1 || row.iter().any(|cell| !cell.is_empty()));
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn cells_in_quotes() {
        let have = super::rows("a\tb\r\n1\t\"x\ty\n\"\"z\"\"\"\n\n2\t\n3\tw");
        assert_eq!(have, [vec!["a", "b"], vec!["1", "x\ty\n\"z\""], vec!["2", ""], vec!["3", "w"]]);
    }
}
