"""What several processes of a run have to agree on."""
