import java.util.HashMap;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

/** Iceberg's reference REST catalogue over the catalogue that the arguments name, until standard input ends. */
public class IcebergRest
{
    public static void main(String[] args)
            throws Exception
    {
        Map<String, String> properties = new HashMap<>();
        for (String property : args) {
            String[] parts = property.split("=", 2);
            properties.put(parts[0], parts[1]);
        }
        RESTCatalogAdapter adapter = new RESTCatalogAdapter(
                CatalogUtil.buildIcebergCatalog("local", properties, new Configuration()));
        Server server = new Server();
        ServerConnector connector = new ServerConnector(server);
        connector.setHost("127.0.0.1");
        server.addConnector(connector);
        ServletContextHandler handler = new ServletContextHandler();
        handler.addServlet(new ServletHolder(new RESTCatalogServlet(adapter)), "/*");
        server.setHandler(handler);
        server.start();
        System.out.println("LISTENING http://127.0.0.1:" + connector.getLocalPort());
        System.out.flush();
        while (System.in.read() >= 0) {
        }
        System.exit(0);
    }
}
