//! Floods: each ends the connection within its bounds, and ordinary use, also heavy, does not.
