"""One file a work: a function per contestant, which returns what is to be timed."""
