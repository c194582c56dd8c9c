//! An append-only file with the beginning and the end of every request. Lines are written at
//! once, so that they outlive a SIGKILL: they prove that no order was served twice.
//!
//! ```text
//! + orders 17        begun
//! - orders 17        ended
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::wire::Half;

#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A request in service; its end is written when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    journal: Arc<Journal>,
    half: Half,
    id: u64,
}

impl Journal {
    pub(crate) fn open(file: &Path) -> io::Result<Arc<Self>> {
        let file = OpenOptions::new().create(true).append(true).open(file)?;
        Ok(Arc::new(Self {
            file,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }))
    }

    pub(crate) fn begin(self: &Arc<Self>, half: Half, id: u64) -> io::Result<Entry> {
        self.append('+', half, id)?;
        self.begun.fetch_add(1, Relaxed);
        Ok(Entry {
            journal: Arc::clone(self),
            half,
            id,
        })
    }

    /// Requests begun and ended since the process started.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.begun.load(Relaxed), self.ended.load(Relaxed))
    }

    /// One write for a line: the file is on tmpfs, where that is a copy.
    fn append(&self, mark: char, half: Half, id: u64) -> io::Result<()> {
        (&self.file).write_all(format!("{mark} {} {id}\n", half.as_str()).as_bytes())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.journal.ended.fetch_add(1, Relaxed);
        if let Err(error) = self.journal.append('-', self.half, self.id) {
            crate::complain(&format!("writing the journal: {error}"));
        }
    }
}
