"""Images: phantoms with known anatomy, public sets, files of the user."""
