"""The status page: create_app(board, submit, stop) and its templates."""
