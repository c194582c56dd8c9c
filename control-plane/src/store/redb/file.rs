//! The open database. redb does not use a file again that failed once ("previous I/O error"), so
//! it is closed and opened anew; meanwhile nothing can be read.

use std::{fmt, sync::Arc, thread, time::Duration};

use ::redb::{Database, Error};
use parking_lot::RwLock;

/// Opens the same file each time.
type Open = Box<dyn Fn() -> Result<Database, Error> + Send + Sync>;

/// See the module.
pub(super) struct File {
    open: Open,
    /// `None` while it cannot be opened.
    database: RwLock<Option<Arc<Database>>>,
}

impl File {
    pub(super) fn open(
        open: impl Fn() -> Result<Database, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let database = open()?;
        Ok(Self {
            open: Box::new(open),
            database: RwLock::new(Some(Arc::new(database))),
        })
    }

    /// For one transaction; [`File::reopen`] waits for its end.
    pub(super) fn database(&self) -> Result<Arc<Database>, Error> {
        self.database.read().clone().ok_or(Error::PreviousIo)
    }

    /// Closes the database and opens it again. Blocks until every transaction has ended.
    pub(super) fn reopen(&self) -> Result<(), Error> {
        let mut database = self.database.write();
        close(database.take());
        *database = Some(Arc::new((self.open)()?));
        Ok(())
    }

    /// Closes the database for good. Blocks until every transaction has ended.
    pub(super) fn close(&self) {
        close(self.database.write().take());
    }
}

fn close(mut database: Option<Arc<Database>>) {
    while let Some(open) = database {
        database = Arc::try_unwrap(open).err();
        if database.is_some() {
            thread::sleep(READER_PATIENCE);
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").finish_non_exhaustive()
    }
}

/// Between two looks at whether the last reader has gone; they take microseconds.
const READER_PATIENCE: Duration = Duration::from_millis(1);
