//! Finds the configuration file and reads it from disk.

use std::path::{Path, PathBuf};

use super::{Broken, Config, Surroundings, Variables};
use crate::environment;
use crate::store::url;

/// Paths of the file if no variable names it.
const PLACES: [&str; 2] = ["/etc/walferry.yml", "/etc/litestream.yml"];
/// Variables that name the file; the first that is set counts.
const VARIABLES: [&str; 2] = ["WALFERRY_CONFIG", "LITESTREAM_CONFIG"];
/// If this variable is set and not 0, variables in the file are not replaced.
const NO_EXPAND: &str = "WALFERRY_NO_EXPAND_ENV";
/// Longest file in bytes.
const LEN_MAX: u64 = 1 << 20;

/// Returns the file that the environment names, else the first file of `PLACES` that exists.
pub fn file_of_environment() -> Option<PathBuf> {
    let given = |name: &&str| environment::variable(name).filter(|value| !value.is_empty());
    if let Some(named) = VARIABLES.iter().find_map(given) {
        return Some(named.into());
    }
    // A path that cannot be examined may have a file. The attempt to read it gives the error.
    let is_there = |place: &&&str| {
        let found = Path::new(place).symlink_metadata();
        !matches!(found, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
    };
    PLACES.iter().find(is_there).map(PathBuf::from)
}

/// Reads a file, with the variables and the working directory of this process.
pub fn load(file: &Path, expand: bool) -> Result<Config, Broken> {
    let shown = file.to_string_lossy();
    if url::is_url(&shown) {
        let shown = url::redacted(&shown);
        let what = "this is a URL: name the configuration file by its path on this machine";
        return Err(Broken::because(Path::new(&shown), what));
    }
    let text = read(file).map_err(|why| Broken::because(file, why))?;
    let directory = std::env::current_dir().map_err(|error| {
        Broken::because(file, format!("there is no working directory: {error}"))
    })?;
    let home = environment::variable("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let variable = |name: &str| match name {
        "PID" => Some(std::process::id().to_string()),
        name => environment::variable(name).and_then(|value| value.into_string().ok()),
    };
    let expand = expand && environment::variable(NO_EXPAND).is_none_or(|value| value == "0");
    let variable: Option<&Variables<'_>> = if expand { Some(&variable) } else { None };
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    Config::parse(&file, &text, variable, &Surroundings { directory, home })
}

fn read(file: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let cannot = |error: std::io::Error| format!("the file cannot be read: {error}");
    let mut text = Vec::new();
    let opened = std::fs::File::open(file).map_err(cannot)?;
    opened.take(LEN_MAX + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > LEN_MAX {
        return Err("the file is longer than 1 MiB".into());
    }
    String::from_utf8(text).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8")
    })
}
