//! Where a record's pictures and videos are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A folder of pictures and videos, searched only where a name is not found at once.
pub struct Media {
    roots: Vec<PathBuf>,
    index: OnceLock<HashMap<String, Vec<PathBuf>>>,
}

impl Media {
    /// The folders, the likeliest first.
    pub fn new(roots: Vec<PathBuf>) -> Media {
        Media { roots, index: OnceLock::new() }
    }

    /// The file or folder that a record names, perhaps below `inside`.
    ///
    /// Errors: what is not there, or there more than once.
    pub fn find(&self, name: &str, inside: &[&str]) -> Result<PathBuf, String> {
        let name = name.replace('\\', "/");
        if name.split('/').any(|part| part == "..") {
            return Err(format!("the name `{name}` leads out of its folder"));
        }
        for root in &self.roots {
            let direct = inside.iter().map(|folder| root.join(folder).join(&name)).chain([root.join(&name)]);
            if let Some(found) = direct.into_iter().find(|path| path.exists()) {
                return Ok(found);
            }
        }
        let last = name.rsplit('/').next().unwrap_or(&name);
        let known = self.index.get_or_init(|| self.walk());
        let named = known.get(last).map(Vec::as_slice).unwrap_or_default();
        let ending: Vec<&PathBuf> = named.iter().filter(|path| path.ends_with(&name)).collect();
        match (ending.as_slice(), named) {
            ([only], _) => Ok((*only).clone()),
            ([], [only]) => Ok(only.clone()),
            ([], []) => Err(format!("`{name}` is not below {}", self.named())),
            _ => Err(format!("`{name}` is there more than once below {}", self.named())),
        }
    }

    fn named(&self) -> String {
        self.roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(" or ")
    }

    fn walk(&self) -> HashMap<String, Vec<PathBuf>> {
        let mut out: HashMap<String, Vec<PathBuf>> = HashMap::new();
        let mut left: Vec<PathBuf> = self.roots.clone();
        left.dedup();
        let mut seen = std::collections::HashSet::new();
        while let Some(folder) = left.pop() {
            if !seen.insert(folder.clone()) {
                continue;
            }
            for item in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = item.path();
                if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                    out.entry(name.to_owned()).or_default().push(path.clone());
                }
                if path.is_dir() {
                    left.push(path);
                }
            }
        }
        out
    }
}

/// The folder of a file.
pub fn beside(file: &Path) -> PathBuf {
    file.parent().map(Path::to_path_buf).filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| PathBuf::from("."))
}
