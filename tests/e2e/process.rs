//! (coming with the command line)
