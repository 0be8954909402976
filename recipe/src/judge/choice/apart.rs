//! Names of records, each unlike the others.

use super::Record;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Tells records of one name apart: those of several files by the file's path, those of one file by a number.
///
/// Groups follow their records. What has a name of its own keeps it: answers are found again by it.
pub(super) fn apart(records: &mut [Record]) {
    by_path(records);
    by_number(records);
}

/// All records of a file that shares a name with another one get the path in place of the file's name.
fn by_path(records: &mut [Record]) {
    let names = |record: &Record| [Some(record.id.clone()), record.group.clone()].into_iter().flatten();
    let mut owners: HashMap<String, &Path> = HashMap::new();
    let mut shared: HashSet<PathBuf> = HashSet::new();
    for record in records.iter() {
        for name in names(record) {
            let owner = owners.entry(name).or_insert(&record.file);
            if *owner != record.file {
                shared.extend([owner.to_path_buf(), record.file.clone()]);
            }
        }
    }
    for record in records.iter_mut().filter(|record| shared.contains(&record.file)) {
        let path = record.file.display();
        let below = |name: &String| format!("{path}/{}", name.split_once('/').map_or(name.as_str(), |(_, rest)| rest));
        (record.id, record.group) = (below(&record.id), record.group.as_ref().map(below));
    }
}

/// The second record of a name and those after it get a number.
fn by_number(records: &mut [Record]) {
    let mut taken: HashSet<String> = records.iter().map(|record| record.id.clone()).collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for record in records {
        let count = counts.entry(record.id.clone()).or_default();
        *count += 1;
        if *count == 1 {
            continue;
        }
        let mut name = format!("{}#{count}", record.id);
        while !taken.insert(name.clone()) {
            *count += 1;
            name = format!("{}#{count}", record.id);
        }
        record.group = record.group.as_ref().map(|group| format!("{group}#{count}"));
        record.id = name;
    }
}
