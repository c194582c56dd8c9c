//! Settings files: YAML into a `Raw*` type that denies unknown fields, with an environment
//! variable for every field.
//!
//! `HEDDLE_OUTBOUND__LISTEN=127.0.0.1:15001` sets `outbound.listen`; the value is read as YAML.
//! Turning the raw type into validated settings is the program's own.

use std::{fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use thiserror::Error;

/// Prefix of the environment variables that override settings.
const PREFIX: &str = "HEDDLE_";

/// Why settings could not be read.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error("reading {file}")]
    Read {
        /// As the user named it.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the message has line, column and field.
    #[error("{file}: {message}")]
    File {
        /// As the user named it.
        file: String,
        /// From the decoder.
        message: String,
    },
    /// An environment variable names no setting or has a wrong value.
    #[error("environment variable {name}: {message}")]
    Variable {
        /// Its whole name.
        name: String,
        /// From the decoder.
        message: String,
    },
}

/// Reads `file`, if there is one, and applies the overrides of `environment`.
///
/// # Errors
/// [`SettingsError`] with the place of the fault.
pub fn read<T: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<T, SettingsError> {
    let mut settings = match file {
        Some(file) => read_file(file)?,
        None => T::default(),
    };
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(PREFIX).filter(|path| !path.is_empty()) else {
            continue;
        };
        // Not a setting: those of other programs of ours, such as the test suites.
        if !path.contains("__") {
            continue;
        }
        let path = path.to_ascii_lowercase();
        settings = with(&settings, &path, &text)
            .map_err(|message| SettingsError::Variable { name, message })?;
    }
    Ok(settings)
}

fn read_file<T: DeserializeOwned>(file: &Path) -> Result<T, SettingsError> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).map_err(|source| SettingsError::Read {
        file: name.clone(),
        source,
    })?;
    serde_saphyr::from_str(&text).map_err(|error| SettingsError::File {
        file: name,
        message: error.to_string(),
    })
}

/// `settings` with the field at `path` (`a__b`) set to the YAML in `text`.
///
/// One decoder, of the whole type, reads it all: each further one is a tenth of a MiB.
fn with<T: DeserializeOwned + Serialize>(
    settings: &T,
    path: &str,
    text: &str,
) -> Result<T, String> {
    let decode = |yaml: &str| serde_saphyr::from_str(yaml).map_err(|error| words(&error));
    let tree = |settings: &T| serde_json::to_value(settings).map_err(|error| error.to_string());
    let alone: T = decode(&document(path, text))?;
    let pointer = format!("/{}", path.replace("__", "/"));
    let value = tree(&alone)?.pointer(&pointer).cloned();
    let mut tree = tree(settings)?;
    let mut at = &mut tree;
    for field in path.split("__") {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        at = at
            .as_object_mut()
            .ok_or_else(|| format!("{field} is not inside a section"))?
            .entry(field)
            .or_insert(Value::Null);
    }
    *at = value.unwrap_or_default();
    // JSON is YAML.
    decode(&tree.to_string())
}

/// `text` under the fields of `path`, indented so that none of its lines leaves them.
fn document(path: &str, text: &str) -> String {
    let mut document = String::new();
    let mut indent = "\n".to_owned();
    for field in path.split("__") {
        document += &format!("{indent}{}:", Value::from(field));
        indent.push_str("  ");
    }
    document + &indent + &text.replace('\n', &indent)
}

/// The decoder's words without its snippet and position, which are of a text nobody wrote.
fn words(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    let message = line.rsplit_once(" at line ").map_or(line, |(head, _)| head);
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Raw {
        outbound: Option<RawOutbound>,
        name: Option<String>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct RawOutbound {
        listen: Option<String>,
        workers: Option<u32>,
    }

    #[track_caller]
    fn check(file: &str, environment: &[(&str, &str)], expected: Result<(&str, u32), &str>) {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(file.as_bytes()).unwrap();
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let read = read::<Raw>(Some(on_disk.path()), environment)
            .map(|raw| {
                let outbound = raw.outbound.unwrap_or_default();
                (
                    outbound.listen.unwrap_or_default(),
                    outbound.workers.unwrap_or_default(),
                )
            })
            .map_err(|error| error.to_string());
        match (read, expected) {
            (Ok((listen, workers)), Ok(expected)) => {
                assert_eq!((listen.as_str(), workers), expected);
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (read, expected) => assert_eq!(format!("{read:?}"), format!("{expected:?}")),
        }
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        check("outbound: {listen: a, workers: 2}", &[], Ok(("a", 2)));
        check(
            "outbound: {listen: a, workers: 2}",
            &[("HEDDLE_OUTBOUND__LISTEN", "b"), ("PATH", "c")],
            Ok(("b", 2)),
        );
        check("{}", &[("HEDDLE_OUTBOUND__WORKERS", "4")], Ok(("", 4)));
        check(
            "outbound: {listen: a, workers: 2}",
            &[("HEDDLE_OUTBOUND__LISTEN", "null")],
            Ok(("", 2)),
        );
    }

    #[test]
    fn a_variable_sets_one_field() {
        let listen = |text| [("HEDDLE_OUTBOUND__LISTEN", text)];
        check("{}", &listen("|-\n  a\n  b"), Ok(("a\nb", 0)));
        for text in ["a\nworkers: 9", "\n\nworkers: 9", "a, workers: 9}"] {
            check("{}", &listen(text), Err("HEDDLE_OUTBOUND__LISTEN"));
        }
        check(
            "{}",
            &[("HEDDLE_OUTBOUND: 1__LISTEN", "a")],
            Err("unknown field"),
        );
    }

    #[test]
    fn faults_name_their_place() {
        check("outbound:\n  listn: a", &[], Err("listn"));
        check("outbound:\n  listn: a", &[], Err("line 2"));
        check(
            "{}",
            &[("HEDDLE_OUTBOUND__WORKRS", "4")],
            Err("HEDDLE_OUTBOUND__WORKRS: unknown field `workrs`"),
        );
        check(
            "{}",
            &[("HEDDLE_OUTBOUND__WORKERS", "many")],
            Err("HEDDLE_OUTBOUND__WORKERS"),
        );
    }
}
