//! Our own API: that its fields and methods say what they mean.

use crate::tree::SourceFile;

/// Fields and methods of a `.proto` file above which there is no comment.
pub(crate) fn undocumented(file: &SourceFile) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut silent = Vec::new();
    for (number, line) in file.text.lines().map(str::trim).enumerate() {
        let is_in = |kinds: &[&str]| blocks.last().is_some_and(|last| kinds.contains(last));
        let is_field = is_in(&["message", "oneof"]) && line.ends_with(';') && line.contains(" = ");
        let is_method = is_in(&["service"]) && line.starts_with("rpc ");
        if (is_field || is_method) && !before.starts_with("//") {
            silent.push(format!("{}:{}: {line}", file.path, number + 1));
        }
        match line {
            "}" => drop(blocks.pop()),
            _ if line.ends_with('{') => blocks.extend(line.split(' ').next()),
            _ => {}
        }
        before = line;
    }
    silent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_or_method_without_a_comment_is_found() {
        let text = "syntax = \"proto3\";

service S {
  rpc Silent(A) returns (B);

  // Told.
  rpc Told(A) returns (B);
}

message A {
  enum Kind {
    KIND_UNSPECIFIED = 0;
  }
  // Told.
  string told = 1;
  repeated string silent = 2;

  oneof event {
    B b = 3;
  }
}

message B {}
";
        let file = SourceFile {
            path: "a.proto".to_owned(),
            text: text.to_owned(),
        };
        let found = undocumented(&file);
        let found: Vec<_> = found
            .iter()
            .map(|line| line.rsplit_once(": ").unwrap().1)
            .collect();
        assert_eq!(
            found,
            [
                "rpc Silent(A) returns (B);",
                "repeated string silent = 2;",
                "B b = 3;"
            ]
        );
    }
}
