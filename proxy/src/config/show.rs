//! `heddle-proxy config --print`: the effective settings, one line each, with their source.

use std::{fmt::Write, path::Path};

use heddle_shell::settings;
use serde_json::Value;

use super::{Machine, RawConfig};

/// One line per field: `name: value  # source`. Settings name files of secrets and hold none.
///
/// # Errors
/// When the file or a variable does not decode.
pub fn show(file: Option<&Path>, environment: &[(String, String)]) -> anyhow::Result<String> {
    let from_file = tree(&settings::read::<RawConfig>(file, [])?)?;
    let raw: RawConfig = settings::read(file, environment.iter().cloned())?;
    let effective = tree(&raw.filled(&Machine::this()))?;
    let source = |path: &str| {
        let variable = format!("HEDDLE_{}", path.to_ascii_uppercase().replace('.', "__"));
        if environment.iter().any(|(name, _)| *name == variable) {
            return variable;
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        match (file, from_file.pointer(&pointer)) {
            (Some(file), Some(value)) if !is_unset(value) => file.display().to_string(),
            _ => "default".to_owned(),
        }
    };
    let mut lines = String::new();
    for (section, fields) in effective.as_object().into_iter().flatten() {
        for (field, value) in fields.as_object().into_iter().flatten() {
            let path = format!("{section}.{field}");
            writeln!(lines, "{path}: {value}  # {}", source(&path))?;
        }
    }
    Ok(lines)
}

fn tree(raw: &RawConfig) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(raw)?)
}

fn is_unset(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}
