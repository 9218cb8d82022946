"""Networks of other libraries as layers of this package, and the reverse, where the mathematics agrees."""
