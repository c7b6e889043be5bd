"""How ranks are started, watched and reported."""
