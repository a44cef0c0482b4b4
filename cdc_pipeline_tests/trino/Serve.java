import io.trino.plugin.hive.HiveConnectorFactory;
import io.trino.plugin.iceberg.IcebergPlugin;
import io.trino.server.testing.TestingTrinoServer;
import io.trino.spi.Plugin;
import io.trino.spi.connector.ConnectorFactory;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A Trino with the catalogues "iceberg" and "hive" over one Glue and S3, until standard input ends. */
public class Serve
{
    public static void main(String[] args)
            throws Exception
    {
        Map<String, String> shared = new HashMap<>();
        for (String property : args) {
            String[] parts = property.split("=", 2);
            shared.put(parts[0], parts[1]);
        }
        TestingTrinoServer server = TestingTrinoServer.create();
        server.installPlugin(new IcebergPlugin());
        server.installPlugin(new Plugin()
        {
            @Override
            public Iterable<ConnectorFactory> getConnectorFactories()
            {
                return List.of(new HiveConnectorFactory("hive"));
            }
        });
        server.createCatalog("iceberg", "iceberg", with(shared, "iceberg.catalog.type", "glue"));
        shared.put("hive.metastore", "glue");
        server.createCatalog("hive", "hive", shared);
        server.createCatalog("projected", "hive", with(shared, "hive.partition-projection-enabled", "true"));
        System.out.println("LISTENING " + server.getBaseUrl());
        System.out.flush();
        while (System.in.read() >= 0) {
        }
        System.exit(0);
    }

    private static Map<String, String> with(Map<String, String> shared, String name, String value)
    {
        Map<String, String> properties = new HashMap<>(shared);
        properties.put(name, value);
        return properties;
    }
}
