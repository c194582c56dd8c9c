//! A client and a server back to back, with an accountant between them.
