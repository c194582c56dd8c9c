//! Files of the data directory: written aside, synced and renamed, so that a crash leaves the
//! old one or the new one; secrets readable by their owner only.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Largest file read: certificates and keys are a few kilobytes.
const BYTES_MAX: u64 = 1 << 20;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 0600.
    Secret,
    /// 0644.
    Public,
}

/// Why a file of the data directory is not usable.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system said no.
    #[error("{action} {}", .file.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read a key.
    #[error(
        "{} holds a private key and has mode {mode:o}; make it 0600 (and replace the key if others may have read it)",
        .file.display()
    )]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Far more than a key and its certificates.
    #[error("{} is larger than {BYTES_MAX} bytes", .file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// Another process works on the directory.
    #[error("another control plane is running on {}; stop it or give this one its own data_directory", .directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
}

/// The lock of a data directory, held until dropped (or until the process ends).
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Makes the directory if need be (0700) and locks it.
///
/// # Errors
/// [`FileError::InUse`] when another process holds it.
pub fn lock(directory: &Path) -> Result<Lock, FileError> {
    make_directory(directory)?;
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| io_error("opening", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(FileError::InUse {
            directory: directory.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(io_error("locking", &path, source)),
    }
}

/// Makes a directory (0700) with its parents.
///
/// # Errors
/// [`FileError::Io`].
pub fn make_directory(directory: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| io_error("making directory", directory, source))
}

/// Replaces a file whole.
///
/// # Errors
/// [`FileError::Io`]; the old file is then still there.
pub fn write(path: &Path, bytes: &[u8], mode: Mode) -> Result<(), FileError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let replace = || -> io::Result<()> {
        // A leftover of a crash; its mode could be anything.
        if let Err(error) = fs::remove_file(&aside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(match mode {
                Mode::Secret => 0o600,
                Mode::Public => 0o644,
            })
            .open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        // The rename itself must survive a power cut.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    replace().map_err(|source| io_error("writing", path, source))
}

/// Reads a file that holds a private key; none when there is no file.
///
/// # Errors
/// [`FileError::Exposed`] when its group or others may read or write it.
pub fn read_secret(path: &Path) -> Result<Option<String>, FileError> {
    read(path, |file| {
        // Of the open file, not of the path: nobody can swap it in between.
        let mode = file
            .metadata()
            .map_err(|source| io_error("reading", path, source))?
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(FileError::Exposed {
                file: path.to_owned(),
                mode,
            });
        }
        Ok(())
    })
}

/// Reads a file that anyone may read; none when there is no file.
///
/// # Errors
/// [`FileError::Io`], [`FileError::TooLarge`].
pub fn read_public(path: &Path) -> Result<Option<String>, FileError> {
    read(path, |_file| Ok(()))
}

fn read(
    path: &Path,
    check: impl FnOnce(&File) -> Result<(), FileError>,
) -> Result<Option<String>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("reading", path, source)),
    };
    check(&file)?;
    let mut text = String::new();
    file.take(BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|source| io_error("reading", path, source))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(FileError::TooLarge {
            file: path.to_owned(),
        });
    }
    Ok(Some(text))
}

fn io_error(action: &'static str, file: &Path, source: io::Error) -> FileError {
    FileError::Io {
        action,
        file: file.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write(&path, b"secret", Mode::Secret).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_secret(&path).unwrap().as_deref(), Some("secret"));
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = read_secret(&path).unwrap_err().to_string();
            assert!(refused.contains("make it 0600"), "{refused}");
        }
    }

    #[test]
    fn a_file_left_aside_by_a_crash_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(directory.path().join("key.new"), "torn").unwrap();
        write(&path, b"whole", Mode::Secret).unwrap();
        assert_eq!(read_secret(&path).unwrap().as_deref(), Some("whole"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_has_one_control_plane() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        let refused = lock(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("another control plane"), "{refused}");
        drop(held);
        lock(directory.path()).unwrap();
    }
}
