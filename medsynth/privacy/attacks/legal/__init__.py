"""The three tests of the law: can somebody be singled out, linked, or have something inferred (WP216)?"""
