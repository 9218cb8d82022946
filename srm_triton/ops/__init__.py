"""One file an operation: equations, eager reference, custom op, public function."""
